"""A command from a settings class: each setting is a flag, so that no flag is written twice.

A flag's text goes to the settings class unread, and so a wrong value is refused with the same sentence
whether it came from a flag, the environment or the file. Nothing slow is imported here: `--help` is quick,
and works without TensorFlow.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from fluffle import logs
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle.known_variables import unknown_variables
from fluffle.settings import (
    CONFIG_VARIABLE,
    DEFAULT_CONFIG,
    SharedSettings,
    env_name,
    flag_name,
    is_argument,
    load_settings,
)
from fluffle.stderr_relay import relayed_stderr

log = logs.get_logger(__name__)

S = TypeVar("S", bound=SharedSettings)

EXIT_BUG = 1
EXIT_WRONG = 2
EXIT_INTERRUPTED = 130

_SHORT_FLAGS = {"verbose": "-v"}
_METAVARS: Mapping[object, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}


def new_app(about: str = "") -> typer.Typer:
    """Return a typer app without its rich tracebacks, which may print local variables and so passwords."""
    return typer.Typer(
        help=about,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_program(name: str, command: Callable[..., None]) -> None:
    """Run one command as a program of its own (`python -m fluffle_aggregator`), and exit with its code."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(command)
    app(prog_name=name)


def settings_command(
    settings_class: type[S], run: Callable[[S], None], *, about: str, without: Collection[str] = ()
) -> Callable[..., None]:
    """Return a typer command with one flag per setting: it loads the settings, sets up logs and calls `run`.

    `about` is what --help says first. Then the settings stand in panels: the part's own, and the shared ones;
    those that mean nothing to the command are named in `without`, and get no flag. A field may say more in
    its json_schema_extra: {"panel": "Strategy", "metavar": "UPDATES", "flag": "--json", "opposite": "--off"},
    where the flag is for a name that a field cannot have, and the opposite for what is not called --no-FLAG.
    With {"argument": True} it has no flag: it is what stands behind the command.
    """

    def command(*, config: Path | None, **flags: object) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        verbose = given.get("verbose") is True
        # How a wrong setting is said must be known before the settings are.
        said = str(given.get("log_format", os.environ.get(env_name("log_format"))))
        log_format = logs.resolved(said, is_service=settings_class.is_service)
        logs.configure(log_format, verbose=verbose, part=settings_class.part or "fluffle")
        with clean_exit(verbose=verbose, as_json=log_format == "json"):
            settings = load_settings(settings_class, given, config=config)
        with own_log(settings) as as_json, clean_exit(verbose=settings.verbose, as_json=as_json):
            warn_of_unknown_variables()
            run(settings)

    fields = settings_class.model_fields
    own = [name for name in fields if name not in SharedSettings.model_fields]
    shared = [name for name in fields if name in SharedSettings.model_fields and name not in without]
    parameters = [
        _parameter(name, fields[name], settings_class.part.capitalize() or "Settings") for name in own
    ]
    parameters += [_parameter(name, fields[name], "Shared") for name in shared]
    parameters.append(_config_parameter())
    # typer reads the signature to learn what the flags are.
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__ = settings_class.part or "command"
    command.__doc__ = about
    return command


@contextmanager
def own_log(settings: SharedSettings) -> Iterator[bool]:
    """Set up the log of a process; give whether it is JSON. Then nothing that is not comes to stderr.

    Where stderr is not this process's own, as in a test, what libraries write there is left alone.
    """
    log_format = logs.resolved(settings.log_format, is_service=settings.is_service)
    as_json, part, fields = log_format == "json", settings.part or "fluffle", settings.log_fields()
    if sys.stderr is not sys.__stderr__:
        logs.configure(log_format, verbose=settings.verbose, part=part, fields=fields)
        yield as_json
        return
    said = {"part": part, **fields}
    with relayed_stderr(as_json=as_json, verbose=settings.verbose, fields=said) as stderr:
        console = PlainConsole(file=stderr)
        logs.configure(log_format, verbose=settings.verbose, part=part, fields=fields, console=console)
        if as_json:
            logging.captureWarnings(capture=True)
            threading.excepthook = _log_end_of_thread
        yield as_json


def warn_of_unknown_variables() -> None:
    """Log each variable of the environment that looks like a setting of Fluffle's, but is none."""
    set_ones = [name for name, value in os.environ.items() if value]
    for unknown in unknown_variables(set_ones):
        meant = {"did_you_mean": unknown.meant} if unknown.meant else {}
        log.warning("a variable of the environment is no setting", variable=unknown.name, **meant)


@contextmanager
def clean_exit(*, verbose: bool = False, as_json: bool = False) -> Iterator[None]:
    """Turn what Fluffle says on purpose into one sentence on stderr and exit code 2, and Ctrl-C into 130.

    With `verbose` the traceback is shown above the sentence. Anything else is a bug and passes through. With
    `as_json` all of this is log lines.
    """
    try:
        yield
    except FluffleError as error:
        _tell(error, verbose=verbose, as_json=as_json)
        sys.exit(EXIT_WRONG)
    except KeyboardInterrupt:
        if as_json:
            log.info("interrupted")
        else:
            typer.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if not as_json:
            raise
        log.critical("ended by a bug", error=f"{type(error).__name__}: {error}", traceback=_traceback(error))
        sys.exit(EXIT_BUG)


def _tell(error: FluffleError, *, verbose: bool, as_json: bool) -> None:
    if as_json:
        log.error(str(error), exc_info=error if verbose else None)
        return
    if verbose:
        typer.echo(f"{_traceback(error)}\n", err=True, nl=False)
    typer.secho("error: ", err=True, nl=False, fg=typer.colors.RED)
    typer.echo(str(error), err=True)


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread else ""
    error = ended.exc_value
    log.error("a thread was ended by an error", thread=name, error=repr(error), traceback=_traceback(error))


def _traceback(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if is_argument(field):
        text = escape(field.description or name)
        argument = typer.Argument(metavar=name.upper(), help=text, show_default=False)
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[str, argument])
    kind = _kind(field)
    choices = [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []
    flag = str(extra.get("flag", flag_name(name)))
    opposite = str(extra.get("opposite", f"--no-{flag.removeprefix('--')}"))
    has_opposite = kind is bool and name not in _SHORT_FLAGS
    flags = [f"{flag}/{opposite}" if has_opposite else flag]
    if name in _SHORT_FLAGS:
        flags.append(_SHORT_FLAGS[name])
    metavar = ""
    if kind is not bool:
        unit = "SECONDS" if name.endswith("_s") else _METAVARS.get(kind, "VALUE")
        metavar = "WORD" if choices else str(extra.get("metavar", unit))
    option = typer.Option(
        *flags,
        help=_help(name, field, choices),
        metavar=metavar,
        show_default=False,
        rich_help_panel=str(extra.get("panel", panel)),
        autocompletion=(lambda: choices) if choices else None,
    )
    return _optional(name, Annotated[bool | None if kind is bool else str | None, option])


def _config_parameter() -> inspect.Parameter:
    text = (
        f"TOML file with these settings. [env: {CONFIG_VARIABLE}] [default: {DEFAULT_CONFIG} if there is one]"
    )
    option = typer.Option(
        "--config", help=escape(text), metavar="FILE", show_default=False, rich_help_panel="Shared"
    )
    return _optional("config", Annotated[Path | None, option])


def _optional(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(field: FieldInfo) -> object:
    """Return the type of a field's value, of `X | None` the X."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    is_optional = len(kinds) == 1 and NoneType in get_args(field.annotation)
    return kinds[0] if is_optional else field.annotation


def _help(name: str, field: FieldInfo, choices: list[str]) -> str:
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        last = " [required]"
    elif default is None:
        last = ""
    elif isinstance(default, bool):
        last = f" [default: {'on' if default else 'off'}]"
    else:
        last = f" [default: {default}]"
    # Here and not in the metavar, where many words would leave no room for the rest.
    known = f" One of {', '.join(choices)}." if choices else ""
    # Escaped: the text goes through rich's markup, in which [env: ...] would be a style.
    return escape(f"{field.description or name}{known} [env: {env_name(name)}]{last}")
