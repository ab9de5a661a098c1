"""Tries a message that may have ended an aggregator before, in a process that may end of it too.

RabbitMQ counts how often it has delivered a message. One that comes for the third time was in the hands of
two aggregators that died. Whether it was the cause, or only waited beside the cause, shows here: the child
reads and folds it as the aggregator would. docs/decisions/0008 says why.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fluffle.errors import WireError
from fluffle.logs import get_logger
from fluffle.model import FrozenPart, Layout, TensorSpec
from fluffle.plan import Plan
from fluffle.record import ModelVersion, Rank
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_aggregator.admission import Policy, refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.settings import AggregatorSettings

log = get_logger(__name__)

TIMEOUT_S = 120.0
# What the child needs to know of the settings; never the broker's login.
SETTINGS = (
    *("strategy", "buffer_size", "staleness", "mixing"),
    *("server_optimizer", "server_learning_rate", "server_momentum"),
)


def try_out(settings: AggregatorSettings, layout: Layout, body: bytes) -> str:
    """Return how a process that took in this message ended, in words; an empty string when it lives."""
    request = {
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "layout": [[spec.name, list(spec.shape), spec.dtype, spec.group] for spec in layout.tensors],
        "frozen": layout.frozen and [layout.frozen.tensors, layout.frozen.parameters, layout.frozen.digest],
    }
    # The command is made here of this interpreter, and no shell reads it.
    command = [sys.executable, "-m", "fluffle_aggregator.trial"]
    try:
        child = subprocess.run(
            command,
            input=json.dumps(request).encode() + b"\n" + body,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {TIMEOUT_S:.0f} s"
    except OSError as error:
        log.warning("a suspicious message cannot be tried, and is taken in as it is", because=str(error))
        return ""
    if child.returncode == 0:
        return ""
    if child.returncode < 0:
        return f"was ended by {signal.Signals(-child.returncode).name}"
    said = child.stderr.decode(errors="replace").strip().splitlines()
    return f"ended with {said[-1][:200] if said else f'exit code {child.returncode}'}"


def take_in(request: Mapping[str, Any], body: bytes) -> None:
    """Do with a message what the aggregator does, on a model of zeros of the same layout."""
    tensors = (TensorSpec(name, tuple(shape), *rest) for name, shape, *rest in request["layout"])
    layout = Layout(tuple(tensors), request["frozen"] and FrozenPart(*request["frozen"]))
    try:
        update = decode_inbound(body, most_parameters=layout.size)
    except WireError:
        return  # which the aggregator refuses by itself
    if not isinstance(update, WeightUpdate):
        return
    settings = AggregatorSettings.model_validate(request["settings"])
    strategy = settings.make_strategy()
    base = Rank(update.base_term, update.base_version)
    record = ModelVersion(
        federation=update.federation,
        term=base.term,
        version=base.version,
        parent="",
        terms=(base,),
        layout=layout,
        plan=Plan(),
        strategy=str(strategy),
        vector=np.zeros(layout.size, np.float32),
        statistics=np.zeros(layout.statistics_size, np.float32),
        integers=bytes(layout.integers_size_bytes),
    )
    model = GlobalModel(record, {}, strategy=strategy, plan=Plan(), goal=Goal(), term=base.term)
    if refusal(update, model, Policy()) is None:
        model.fold(update, now=0.0)
        model.step()


if __name__ == "__main__":
    take_in(json.loads(sys.stdin.buffer.readline()), sys.stdin.buffer.read())
