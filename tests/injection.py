"""Faults at a chosen point of a real process: code that Python runs when the process starts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

# Python imports `sitecustomize` from PYTHONPATH first; tests/federation.py puts its folder there.
PRELUDE = '''\
import os, signal, threading

def die():
    signal.pthread_kill(threading.get_ident(), signal.SIGKILL)

def freeze():
    # To this very thread: it would run on for a moment if another one took the signal.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

def once(marker):
    """Tell whether no process has been here before."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
'''

# `moment(kind, count, before)` is called before and after each publish, with the kind of message and how many
# of that kind this process has published, and after each ack, with the kind "ack".
AT_EACH_CALL = """
from collections import Counter
from pika.adapters.blocking_connection import BlockingChannel

counts = Counter()
publish, ack = BlockingChannel.basic_publish, BlockingChannel.basic_ack

def publishing(self, exchange, routing_key, body, properties=None, mandatory=False):
    kind = properties.type
    counts[kind] += 1
    moment(kind, counts[kind], True)
    publish(self, exchange, routing_key, body, properties, mandatory)
    moment(kind, counts[kind], False)

def acking(self, delivery_tag=0, multiple=False):
    ack(self, delivery_tag, multiple)
    counts["ack"] += 1
    moment("ack", counts["ack"], False)

BlockingChannel.basic_publish, BlockingChannel.basic_ack = publishing, acking
"""


def inject_death(folder: Path, moment: str) -> None:
    """Let the first process die that comes to a moment, an expression of `kind`, `count` and `before`."""
    code = f"""
def moment(kind, count, before):
    if {moment} and once({str(folder / "died")!r}):
        die()
"""
    inject(folder, code, at_each_call=True)


def inject(folder: Path, code: str, *, at_each_call: bool = False) -> None:
    """Let the processes that start in this folder from now on run `code` first."""
    text = PRELUDE + code + (AT_EACH_CALL if at_each_call else "")
    (folder / "sitecustomize.py").write_text(text)


def moments(every: Iterable[str], *soon: str) -> list[Any]:
    """Return the parameters of a test: `make test` takes the moments named, `make test-long` the rest."""
    return [each if each in soon else pytest.param(each, marks=pytest.mark.long) for each in every]
