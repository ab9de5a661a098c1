"""What goes wrong in a task's own code becomes one sentence that names the function and the line. Pure."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fluffle.errors import FluffleError, TaskError

MAX_MESSAGE_LENGTH = 400
# Keras writes some of its messages in bold.
TERMINAL_STYLE = re.compile(r"\x1b\[[0-9;]*m")
STACK_OF_TENSORFLOW = re.compile(
    r"Detected at node .* defined at \(most recent call last\):\n(?:(?:  File .*|<stack .*)?\n)*"
    r"|^\{\{function_node \S+ ?\S*\}\} "
)
# Whose installation is described in pyproject.toml as the extra "worker".
WORKER_PACKAGES = ("keras", "tensorflow", "sklearn", "h5py")
OWN_PACKAGES = ("fluffle", "fluffle_worker", "fluffle_aggregator", "fluffle_cli")


@contextmanager
def blamed_on(function: str) -> Iterator[None]:
    """Turn whatever a task's function raises in this block into a TaskError; Fluffle's own errors pass.

    `function` is the name that its author knows, such as train_data.
    """
    try:
        yield
    except FluffleError:
        raise
    except ModuleNotFoundError as error:
        raise TaskError(_missing_package(function, error)) from error
    except (Exception, SystemExit) as error:
        raise TaskError(f"{function} raised {in_one_line(error)}{place_of(error)}") from error


def in_one_line(error: BaseException) -> str:
    """Return the type and the message of an exception, shortened; -v shows the rest.

    What only a terminal needs, and the stack that TensorFlow puts before its own sentence, is left out.
    """
    text = STACK_OF_TENSORFLOW.sub("", TERMINAL_STYLE.sub("", str(error)))
    message = " ".join(text.split())
    if len(message) > MAX_MESSAGE_LENGTH:
        message = f"{message[:MAX_MESSAGE_LENGTH]} ... (-v shows the rest)"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def place_of(error: BaseException) -> str:
    """Return the deepest line of the user's own code that an exception passed through, in brackets."""
    own = [frame for frame in traceback.walk_tb(error.__traceback__) if _is_users(frame[0])]
    if not own:
        return ""
    frame, line = own[-1]
    return f" ({Path(frame.f_code.co_filename).name}, line {line}, in {frame.f_code.co_name})"


def _missing_package(function: str, error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    if package in WORKER_PACKAGES:
        return f"{function} needs {package}, which is not installed: install Fluffle with the extra [worker]"
    if not package:
        return f"{function} raised {in_one_line(error)}{place_of(error)}"
    return (
        f"{function} needs the package {package!r}, which is not installed: pip install it "
        f"into this environment{place_of(error)}"
    )


def _is_users(frame: FrameType) -> bool:
    """Tell whether code is neither installed, nor Python's own, nor Fluffle's, nor made by TensorFlow."""
    filename = frame.f_code.co_filename
    path = Path(filename)
    return not (
        str(frame.f_globals.get("__name__", "")).partition(".")[0] in OWN_PACKAGES
        or path.name.startswith("__autograph_generated_file")
        or filename.startswith(("<frozen", sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")))
        or {"site-packages", "dist-packages"} & set(path.parts)
    )
