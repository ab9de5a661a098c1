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

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from types import MappingProxyType

import structlog
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.text import Text
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.types import EventDict, Processor, WrappedLogger

from fluffle.consoles import PlainConsole
from fluffle.settings import LogFormat

_HANDLER_NAME = "fluffle"
_OWN_LOGGERS = ("fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_cli", "fluffle_spark")
# Hidden unless verbose: pika logs a traceback for each attempt to connect, which we log in one line; httpx
# logs each request, and py4j the end of each connection to Spark.
_LIBRARIES = {"pika": logging.CRITICAL, "httpx": logging.WARNING, "py4j": logging.WARNING}
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

    Each JSON line carries `part` and `fields` ({"federation": "digits", "worker": "w1"}). All other formats
    are for people; a process that draws a progress display with rich passes the display's console, and lines
    scroll by above it. `verbose` adds debug lines, tracebacks and the messages of pika and httpx.
    """
    console = console or PlainConsole(stderr=True)
    handler: logging.Handler
    if log_format == "json":
        handler = logging.StreamHandler(console.file)
        processors: list[Processor] = [_description({"part": part, **fields}, verbose=verbose), _json_line]
    else:
        handler = _ConsoleHandler(console)
        processors = [_description({"part": part}, verbose=verbose), _line_for_people]
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(ProcessorFormatter(processors=processors))
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.name == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    for name, level in _LIBRARIES.items():
        logging.getLogger(name).setLevel(logging.INFO if verbose else level)


def show_to_people(part: str) -> None:
    """Send log lines for people to stderr, unless this program has set up logging itself, as it may do."""
    if not logging.getLogger().handlers:
        configure("pretty", verbose=False, part=part)


def console() -> Console:
    """Return the console that the log lines go to, for whatever else is shown there meanwhile."""
    ours = [each for each in logging.getLogger().handlers if isinstance(each, _ConsoleHandler)]
    return ours[0].console if ours else PlainConsole(stderr=True)


def is_json() -> bool:
    """Return whether the log of this process is JSON."""
    return any(
        each.name == _HANDLER_NAME and not isinstance(each, _ConsoleHandler)
        for each in logging.getLogger().handlers
    )


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
        described.update(
            (name, value) for name, value in event.items() if name not in ("_from_structlog", "stack_info")
        )
        return described

    return describe


def _json_line(_: WrappedLogger, __: str, event: EventDict) -> str:
    """Write a JSON object; a NaN or an infinity, which JSON does not know, becomes null."""
    return json.dumps(
        to_jsonable_python(event, inf_nan_mode="null", bytes_mode="base64", fallback=_number_or_text)
    )


def _number_or_text(value: object) -> object:
    if isinstance(value, Integral):  # numpy's numbers too
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def _line_for_people(_: WrappedLogger, __: str, event: EventDict) -> str:
    """Write local time, part, sentence and fields, and a traceback below them."""
    time, part, level, name = (event.pop(key) for key in ("time", "part", "level", "logger"))
    sentence, exception = _printable(str(event.pop("event"))), event.pop("exception", "")
    if level not in ("info", "debug"):
        sentence = f"{_YELLOW if level == 'warning' else _RED}{level}:{_RESET} {sentence}"
    if logging.getLogger("fluffle").level == logging.DEBUG:
        sentence = f"{_DIM}{name}:{_RESET} {sentence}"
    fields = "".join(f"  {_CYAN}{name}{_RESET}={_shown(value)}" for name, value in event.items())
    line = f"{_DIM}{time.astimezone():%H:%M:%S}{_RESET} {_BLUE}{part}{_RESET}  {sentence}{fields}"
    return f"{line}\n{exception}" if exception else line


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items()) + "}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return repr(text) if " " in text or not text else _printable(text)


def _printable(text: str) -> str:
    """Spell out control characters: a field may hold text from a stranger's message."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
