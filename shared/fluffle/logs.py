"""Log lines: one event, one line, one sentence, with fields; set up once where a process starts.

A module that logs writes

    log = get_logger(__name__)
    log.info("version committed", version=3, updates=4)

The sentence is constant and the ids are fields, so that an operator can grep for them and a log store can
filter by them. The lines go through the standard logging, as do those of other libraries and of a task that
only knows `logging`. Until `configure` is called nothing is set up, as a library should do.

On a terminal, and for a command that answers and ends, lines are for people. A service without a terminal
writes one JSON object a line, always with `time` (UTC), `level`, `part`, `federation`, `event` and `logger`.
Both go to stderr.
"""

import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from numbers import Integral, Real
from types import MappingProxyType

import structlog
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.text import Text
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, plain_traceback
from structlog.processors import JSONRenderer
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.types import EventDict, Processor, WrappedLogger

from fluffle.consoles import PlainConsole
from fluffle.settings import LogFormat

_HANDLER_NAME = "fluffle"
_OWN_LOGGERS = ("fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_cli")
# Hidden unless verbose: pika logs a traceback for each attempt to connect, which we log in one line; httpx
# logs each request; matplotlib warns where no folder is writable for its fonts, which is harmless.
_LIBRARIES = {"pika": logging.CRITICAL, "httpx": logging.WARNING, "matplotlib": logging.ERROR}
_RESET, _RED, _YELLOW, _BLUE, _CYAN, _DIM = (f"\x1b[{code}m" for code in (0, 31, 33, 34, 36, 2))


def get_logger(name: str) -> BoundLogger:
    """Return a module's logger, whose methods take a sentence and fields; `name` is the module's __name__."""
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            # Which of the parts it is, where several run in one process.
            structlog.contextvars.merge_contextvars,
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        # Without this, each call would make a new logger, also for a line that is not written.
        cache_logger_on_first_use=True,
    )
    return logger


def resolved(log_format: str, *, is_service: bool) -> LogFormat:
    """Return what a log format means here: auto is JSON for a service without a terminal."""
    has_no_reader = log_format != "pretty" and is_service and not sys.stderr.isatty()
    return "json" if log_format == "json" or has_no_reader else "pretty"


def configure(
    log_format: LogFormat,
    *,
    verbose: bool,
    part: str,
    fields: Mapping[str, str] = MappingProxyType({}),
    console: Console | None = None,
) -> None:
    """Send this process's log lines to stderr; called again, it replaces what it did before.

    Each JSON line carries `part` and `fields` ({"federation": "digits", "worker": "w1"}). A process that
    draws a progress display with rich passes the display's console: lines then scroll by above it. `verbose`
    adds debug lines, tracebacks and the messages of pika, httpx and matplotlib.
    """
    console = console or PlainConsole(stderr=True)
    pretty = console.file.isatty() if log_format == "auto" else log_format == "pretty"
    # A line for a log store needs nothing that rich does, which would take longer than all the rest.
    plain = not pretty and not console.is_terminal
    handler = logging.StreamHandler(console.file) if plain else _ConsoleHandler(console)
    handler.set_name(_HANDLER_NAME)
    shown_fields = {"part": part} if pretty else {"part": part, **fields}
    last: list[Processor] = [_console_renderer(verbose=verbose)] if pretty else [_to_json, JSONRenderer()]
    handler.setFormatter(ProcessorFormatter(processors=[_description(shown_fields, verbose=verbose), *last]))
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.name == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    for name, level in _LIBRARIES.items():
        logging.getLogger(name).setLevel(logging.INFO if verbose else level)


def console() -> Console:
    """Return the console that the log lines go to, for whatever else is shown there meanwhile."""
    ours = [each for each in logging.getLogger().handlers if isinstance(each, _ConsoleHandler)]
    return ours[0].console if ours else PlainConsole(stderr=True)


class _ConsoleHandler(logging.Handler):
    """Writes through a rich console, so that a line never lands in the middle of a progress display."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # The console drops colours where they do not belong; soft_wrap keeps one line one line.
            self.console.print(Text.from_ansi(self.format(record)), soft_wrap=True)
        except Exception:
            self.handleError(record)


def _description(fields: Mapping[str, str], *, verbose: bool) -> Processor:
    """Return a processor that adds time, level, logger and error to an event, and `fields`."""

    def describe(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        record: logging.LogRecord = event.pop("_record")
        exc_info = event.pop("exc_info", None)
        # It may be True, what sys.exc_info() returns, or the exception itself.
        if exc_info is True:
            exc_info = sys.exc_info()
        error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
        for key in ("_from_structlog", "stack_info"):
            event.pop(key, None)
        described: EventDict = {
            "time": datetime.fromtimestamp(record.created, UTC),
            # pika calls each attempt to connect an error.
            "level": "debug" if record.name.startswith("pika") else record.levelname.lower(),
            **fields,
            "event": event.pop("event"),
            "logger": record.name,
        }
        if error:
            described["error"] = f"{type(error).__name__}: {error}"
        if error and verbose:
            described["exception"] = "".join(traceback.format_exception(error)).rstrip()
        described.update(event)
        return described

    return describe


def _to_json(_: WrappedLogger, __: str, event: EventDict) -> Mapping[str, object]:
    """Turn fields into what JSON knows; a NaN or an infinity, which it does not know, becomes null."""
    plain: dict[str, object] = to_jsonable_python(
        event, inf_nan_mode="null", bytes_mode="base64", fallback=_number_or_text
    )
    return plain


def _number_or_text(value: object) -> object:
    if isinstance(value, Integral):  # numpy's numbers too
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def _console_renderer(*, verbose: bool) -> ConsoleRenderer:
    """Return what writes a line for people: local time, part, sentence, fields."""

    def time(value: object) -> str:
        return f"{value.astimezone():%H:%M:%S}" if isinstance(value, datetime) else str(value)

    def level(value: object) -> str:
        colour = _YELLOW if value == "warning" else _RED
        return "" if value in ("info", "debug") else f"{colour}{value}:{_RESET}"

    def logger(value: object) -> str:
        return f"{_DIM}{value}:{_RESET}" if verbose else ""

    text = partial(KeyValueColumnFormatter, None)
    return ConsoleRenderer(
        columns=[
            Column("time", text(_DIM, _RESET, time)),
            Column("part", text(_BLUE, _RESET, str, postfix=" ")),
            Column("level", text("", "", level)),
            Column("logger", text("", "", logger)),
            Column("event", text("", "", lambda event: _printable(str(event)))),
            Column("", KeyValueColumnFormatter(_CYAN, "", _RESET, _shown, prefix=" ")),
        ],
        exception_formatter=plain_traceback,
        sort_keys=False,
    )


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items()) + "}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return repr(text) if " " in text or not text else _printable(text)


def _printable(text: str) -> str:
    """Spell out control characters: a field may hold text from a stranger's message."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
