"""Log lines: one event, one line, one sentence, with fields; set up once where a process starts.

A module that wants to say something writes

    log = get_logger(__name__)
    log.info("version committed", version=3, updates=4)

The sentence is constant and the ids are fields, so that an operator greps them on a terminal, and a log
store filters by them. The lines go through the standard logging, as do those of any other library and of a
task that only knows `logging`. Until `configure` is called nothing is set up, as befits a library.

On a terminal, and from a command that somebody has called, a line is for people; of a part that runs
anywhere else it is one JSON object, in which `time` (UTC), `level`, `part`, `federation`, `event` and
`logger` are always there. Both go to stderr.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType

import structlog
from rich.console import Console
from rich.text import Text
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.types import EventDict, WrappedLogger

from fluffle.consoles import PlainConsole
from fluffle.settings import LogFormat

_HANDLER_NAME = "fluffle"
_OWN_LOGGERS = ("fluffle", "fluffle_aggregator", "fluffle_worker", "fluffle_cli")
_RED, _YELLOW, _BLUE, _CYAN, _DIM = "31", "33", "34", "36", "2"
_LEVEL_COLOURS: Mapping[str, str] = {"warning": _YELLOW, "error": _RED, "critical": _RED}


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
        # Else each line, also one that is not written, would begin with a new logger.
        cache_logger_on_first_use=True,
    )
    return logger


def resolved(log_format: str, *, is_service: bool) -> LogFormat:
    """Return what a log format means here: auto is JSON for a service without a terminal."""
    if log_format == "json":
        return "json"
    has_no_reader = log_format != "pretty" and is_service and not sys.stderr.isatty()
    return "json" if has_no_reader else "pretty"


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
    # A line for a log store needs nothing that rich does, which takes longer than all else in it.
    plain = not pretty and not console.is_terminal
    handler = logging.StreamHandler(console.file) if plain else _ConsoleHandler(console)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(
        ProcessorFormatter(
            processors=[
                _describe,
                _add_traceback if verbose else _name_exception,
                _PrettyLine(part) if pretty else _JsonLine({"part": part} | dict(fields)),
            ]
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.name == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    # pika logs a traceback for each attempt to connect; we say the same in one line.
    logging.getLogger("pika").setLevel(logging.INFO if verbose else logging.CRITICAL)
    # A line for each request.
    logging.getLogger("httpx").setLevel(logging.INFO if verbose else logging.WARNING)
    # It warns where no folder is writable for its fonts, and tells of each new list of them: harmless both.
    logging.getLogger("matplotlib").setLevel(logging.INFO if verbose else logging.ERROR)


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


def _describe(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace structlog's own keys with time, level, logger and the exception itself."""
    record: logging.LogRecord = event.pop("_record")
    event.pop("_from_structlog")
    event.pop("stack_info", None)
    return {
        "time": datetime.fromtimestamp(record.created, UTC),
        # pika calls each attempt to connect an error; we say the same in one line.
        "level": "debug" if record.name.startswith("pika") else record.levelname.lower(),
        "logger": record.name,
        "exception": _exception(event.pop("exc_info", None)),
        **event,
    }


def _exception(exc_info: object) -> BaseException | None:
    """Return the exception that a log call means by its exc_info: True, a triple, or the exception itself."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _name_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.pop("exception")
    return event if error is None else {"error": _name(error), **event}


def _add_traceback(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    error = event.pop("exception")
    if error is None:
        return event
    return {"error": _name(error), **event, "traceback": "".join(traceback.format_exception(error)).rstrip()}


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


class _JsonLine:
    """Renders an event as one JSON object."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = fields

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> str:
        time, level = event.pop("time"), event.pop("level")
        line = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            **self._fields,
            "event": event.pop("event"),
            **event,
        }
        return json.dumps(_plain(line), allow_nan=False)


def _plain(value: object) -> object:
    """Turn a field into what JSON knows; a NaN or an infinity, which it does not know, becomes null."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, numbers.Integral):  # numpy's integers too
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


class _PrettyLine:
    """Renders an event for people: local time, part, sentence, fields."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> str:
        time, level, trace = event.pop("time"), event.pop("level"), event.pop("traceback", None)
        logger, sentence = event.pop("logger"), _printable(str(event.pop("event")))
        start = f"{_paint(_DIM, f'{time.astimezone():%H:%M:%S}')} {_paint(_BLUE, self._part)}"
        if level in _LEVEL_COLOURS:
            sentence = _paint(_LEVEL_COLOURS[level], f"{level}: {sentence}")
        elif level == "debug":
            sentence = _paint(_DIM, f"{logger}: {sentence}")
        fields = "".join(f"  {_paint(_CYAN, key)}={_shown(value)}" for key, value in _flat(event))
        return f"{start}  {sentence}{fields}" + (f"\n{trace}" if trace else "")


def _flat(event: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Spread out a field that is a map: metrics={"loss": 0.5} reads loss=0.5."""
    for key, value in event.items():
        if isinstance(value, Mapping):
            yield from ((_printable(str(name)), inner) for name, inner in value.items())
        else:
            yield key, value


def _paint(colour: str, text: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m"


def _shown(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return repr(text) if " " in text or not text else _printable(text)


def _printable(text: str) -> str:
    """Spell out control characters: a field may hold what a stranger's message said."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
