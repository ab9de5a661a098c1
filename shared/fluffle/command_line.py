"""A command from a settings class: each setting is a flag, so that no flag is written twice.

A field may say more about its flag in json_schema_extra: "metavar" is what --help shows for the value,
"flag" another name than the field's, "short" a letter, and "opposite" the flag for false (by default
--no-FLAG). With {"argument": True} the setting has no flag: it is a positional argument.

The text of a flag goes to the settings class as it is, so that a wrong value is refused with the same
sentence whether it came from a flag, the environment or the file. Nothing slow is imported here.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from difflib import get_close_matches
from functools import partial, wraps
from inspect import cleandoc
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from fluffle import logs
from fluffle.consoles import PlainConsole
from fluffle.errors import FluffleError
from fluffle.settings import (
    ENV_PREFIX,
    SharedSettings,
    env_name,
    field_extra,
    flag_name,
    known_names,
    load_settings,
    panel_of,
)
from fluffle.stderr_relay import relayed_stderr

log = logs.get_logger(__name__)

S = TypeVar("S", bound=SharedSettings)
P = ParamSpec("P")

_METAVARS: Mapping[object, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
EXIT_WRONG = 2
EXIT_INTERRUPTED = 130


def new_app(about: str = "", *, add_completion: bool = True) -> typer.Typer:
    """Return a typer app without its rich tracebacks, which may print local variables and so passwords."""
    return typer.Typer(
        help=about,
        no_args_is_help=bool(about),
        add_completion=add_completion,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_program(name: str, command: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Run one command as a program of its own (`python -m fluffle_aggregator`), and exit with its code.

    Without `arguments` they are those of this process.
    """
    app = new_app(add_completion=False)
    app.command()(command)
    app(arguments, prog_name=name)


def plain_command(run: Callable[P, None]) -> Callable[P, None]:
    """Return a typer command with one flag per parameter of `run`; --help begins with its docstring."""
    command = clean_exit()(run)
    command.__doc__ = _help_text(run.__doc__)
    return command


def settings_command(
    settings_class: type[S], run: Callable[[S], None], *, about: str = "", without: Collection[str] = ()
) -> Callable[..., None]:
    """Return a typer command with one flag per setting: it loads the settings, sets up logs and calls `run`.

    --help begins with `about`, or else with the docstring of `run`. Settings that mean nothing to the command
    are named in `without`, and get no flag.
    """
    part = settings_class.part or "fluffle"
    fields = {name: field for name, field in settings_class.model_fields.items() if name not in without}
    panels = {name: panel_of(settings_class, name) for name in fields}
    # The part's own flags first, the shared ones last.
    order = sorted(fields, key=lambda name: (panels[name] == "Shared", panels[name] != ""))
    parameters = [_parameter(name, fields[name], panels[name] or part.capitalize()) for name in order]
    # typer reads the flags from the signature of a function, which a dataclass gets from its fields.
    named = {"__doc__": _help_text(about or run.__doc__), "settings_class": settings_class}
    flags = make_dataclass("command", parameters, namespace=named, kw_only=True, repr=False, eq=False)

    @wraps(flags, updated=())
    def command(**flags: object) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        verbose = given.get("verbose") is True
        # Needed before the settings are read, in case one of them is wrong.
        log_format = str(given.get("log_format", os.environ.get(env_name("log_format"))))
        log_format = logs.resolved(log_format, is_service=settings_class.is_service)
        logs.configure(log_format, verbose=verbose, part=part)
        with clean_exit(verbose=verbose):
            settings = load_settings(settings_class, given)
        with own_log(settings), clean_exit(verbose=settings.verbose):
            warn_of_unknown_variables()
            run(settings)

    return command


def choices_of(setting: FieldInfo) -> list[str]:
    """Return the words that a setting can have; none when it is no choice."""
    kind = _kind(setting)
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else []


def metavar_of(name: str, setting: FieldInfo) -> str:
    """Return what --help shows for the value of a setting; nothing for one that is on or off."""
    kind = _kind(setting)
    if kind is bool:
        return ""
    if choices_of(setting):
        return "WORD"
    unit = "SECONDS" if name.endswith("_s") else _METAVARS.get(kind, "TEXT")
    return str(field_extra(setting).get("metavar", unit))


def default_of(setting: FieldInfo) -> str:
    """Return the default of a setting as a person writes it, or "" where the description says it."""
    if setting.is_required() or setting.default is None or setting.default_factory is not None:
        return ""
    return {True: "on", False: "off"}[setting.default] if _kind(setting) is bool else str(setting.default)


@contextmanager
def own_log(settings: SharedSettings) -> Iterator[None]:
    """Set up the log of a process. Where it is JSON, nothing else comes to stderr.

    Where stderr is not this process's own, as in a test, what libraries write there is left alone.
    """
    log_format = logs.resolved(settings.log_format, is_service=settings.is_service)
    part, fields = settings.part or "fluffle", settings.log_fields()
    configure = partial(logs.configure, log_format, verbose=settings.verbose, part=part, fields=fields)
    if sys.stderr is not sys.__stderr__:
        configure()
        yield
        return
    as_json = log_format == "json"
    with relayed_stderr(as_json=as_json, verbose=settings.verbose, fields={"part": part, **fields}) as stderr:
        configure(console=PlainConsole(file=stderr))
        if as_json:
            logging.captureWarnings(capture=True)
            sys.excepthook = lambda _, error, __: _log_bug("stopped by a bug", error)
            threading.excepthook = lambda ended: _log_bug(
                "a thread was stopped by an error", ended.exc_value, thread=ended.thread and ended.thread.name
            )
        yield


def warn_of_unknown_variables() -> None:
    """Log each environment variable that looks like a setting of Fluffle but is none."""
    for variable, meant in unknown_variables(name for name, value in os.environ.items() if value):
        suggestion = {"did_you_mean": meant} if meant else {}
        log.warning("unknown environment variable", variable=variable, **suggestion)


def unknown_variables(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find variables that look like a setting but are none, each with the one it may mean, or ""."""
    known = [name.removeprefix(ENV_PREFIX) for name in known_names("variables")]
    for name in sorted(names):
        prefix, setting = name[: len(ENV_PREFIX)].upper(), name[len(ENV_PREFIX) :].upper()
        if prefix == ENV_PREFIX and setting not in known:
            close = get_close_matches(setting, known, n=1)
            yield name, ENV_PREFIX + close[0] if close else ""


@contextmanager
def clean_exit(*, verbose: bool = False) -> Iterator[None]:
    """Turn a FluffleError into one sentence on stderr and exit code 2, and Ctrl-C into exit code 130.

    With `verbose` the traceback is shown above the sentence. Any other exception is a bug and passes through.
    Where the log is JSON, the sentence is a log line.
    """
    try:
        yield
    except FluffleError as error:
        _show_error(error, verbose=verbose)
        sys.exit(EXIT_WRONG)
    except KeyboardInterrupt:
        if logs.is_json():
            log.info("interrupted")
        else:
            typer.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)


def _show_error(error: FluffleError, *, verbose: bool) -> None:
    if logs.is_json():
        log.error(str(error), exc_info=error if verbose else None)
        return
    if verbose:
        typer.echo(_traceback(error), err=True)
    typer.secho("error: ", err=True, nl=False, fg=typer.colors.RED)
    typer.echo(str(error), err=True)


def _log_bug(event: str, error: BaseException | None, **fields: object) -> None:
    log.critical(event, error=f"{type(error).__name__}: {error}", exception=_traceback(error), **fields)


def _traceback(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _help_text(docstring: str | None) -> str:
    """Put each paragraph on one line, because typer does not join the lines of a later paragraph."""
    return "\n\n".join(each.replace("\n", " ") for each in cleandoc(docstring or "").split("\n\n"))


def _parameter(name: str, setting: FieldInfo, panel: str) -> tuple[str, object, Any]:
    """Return what typer is to read for one setting, as a field of a dataclass."""
    extra, flag, choices = field_extra(setting), flag_name(name, setting), choices_of(setting)
    if extra.get("argument"):
        argument = typer.Argument(metavar=flag, help=escape(setting.description or ""), show_default=False)
        return name, Annotated[str, argument], field()
    is_bool = _kind(setting) is bool
    flags = [flag, str(extra["short"])] if "short" in extra else [flag]
    if is_bool and "short" not in extra:
        flags = [f"{flag}/{extra.get('opposite', f'--no-{flag[2:]}')}"]
    option = typer.Option(
        *flags,
        help=_help(name, setting),
        metavar=metavar_of(name, setting),
        show_default=False,
        rich_help_panel=panel,
        autocompletion=(lambda: choices) if choices else None,
    )
    return name, Annotated[bool | None if is_bool else str | None, option], field(default=None)


def _kind(setting: FieldInfo) -> object:
    """Return the type of a setting's value; for `X | None` the X."""
    kinds = [kind for kind in get_args(setting.annotation) if kind is not NoneType]
    is_optional = len(kinds) == 1 and NoneType in get_args(setting.annotation)
    return kinds[0] if is_optional else setting.annotation


def _help(name: str, setting: FieldInfo) -> str:
    default, choices = default_of(setting), choices_of(setting)
    # Here and not in the metavar, where many words would leave no room for the rest.
    known = f" One of {', '.join(choices)}." if choices else ""
    last = " [required]" if setting.is_required() else f" [default: {default}]" if default else ""
    # Escaped, because rich would read [env: ...] as the name of a style.
    return escape(f"{setting.description}{known} [env: {env_name(name)}]{last}")
