"""The user's task module on its way to the executors, as a zip archive that travels with the order.

Spark's addPyFile sends a file of one name only once in a session, so that a notebook would train with the
code of its first call for ever.
"""

import importlib.util
import io
import sys
import sysconfig
import zipfile
from pathlib import Path

from fluffle.errors import TaskError
from fluffle.task import READY_TASKS, place_of_task

# Code is small; a data set in the folder of a package is not.
MOST_BYTES = 16 * 2**20


def code_of(task: str) -> bytes:
    """Return the module or package of a task as a zip archive; empty for a ready or an installed one.

    What it imports besides must be installed on the executors, or be sent with `addPyFile` or --archives.
    Raises TaskError for a task whose module the driver does not find or that is too large.
    """
    module, _ = place_of_task(task)
    if task in READY_TASKS:
        return b""
    top = module.partition(".")[0]
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        spec = None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise TaskError(
            f"the module {top!r} of the task {task!r} is not found by the driver: start it where the module "
            "can be imported, such as in its folder"
        )
    if spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        return b"" if _is_installed(folder) else _zipped(folder, sorted(folder.rglob("*")))
    file = Path(str(spec.origin))
    return b"" if _is_installed(file) else _zipped(file, [file])


def _is_installed(path: Path) -> bool:
    """Tell whether a module belongs to this Python's installed packages, which executors have themselves."""
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")}
    return any(path.resolve().is_relative_to(each) for each in installed)


def _zipped(top: Path, files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    # Some images and package stores date all files 1970, which a zip archive cannot say.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for file in files:
            name = file.relative_to(top.parent)
            # Hidden files are no code: .git, .env with passwords, a notebook's checkpoints.
            if "__pycache__" in name.parts or any(part.startswith(".") for part in name.parts):
                continue
            if file.is_file():
                archive.write(file, name)
            if buffer.tell() > MOST_BYTES:
                raise TaskError(
                    f"the task's package {top} is too large to be sent to the executors: a zip archive of it "
                    f"has more than {MOST_BYTES:,} bytes. Keep data outside of it, or install it there"
                )
    return buffer.getvalue()


def unpack(code: bytes, folder: Path) -> None:
    """Make the module importable in this process: unpack it into a folder."""
    if code:
        with zipfile.ZipFile(io.BytesIO(code)) as archive:
            archive.extractall(folder)
        sys.path.insert(0, str(folder))
