"""Tries a message that may have killed an aggregator before, in a process that it may kill too.

RabbitMQ counts how often it has delivered a message. One that comes for the third time was in the hands of
two aggregators that died. Whether it was the cause, or only waited beside the cause, shows here: the child
reads it, and passes it through the same gates into a model of zeros. docs/decisions/0008 says why.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fluffle.broker import Delivery
from fluffle.errors import WireError
from fluffle.logs import get_logger
from fluffle.model import FrozenPart, Layout, TensorSpec
from fluffle.plan import Plan
from fluffle.record import ModelVersion, Rank
from fluffle.topology import topology_of
from fluffle.update import WeightUpdate
from fluffle.wire import decode_inbound
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.gates.sequence import gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.intake import take_in
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies.registry import StrategySettings

log = get_logger(__name__)

TIMEOUT_S = 120.0


def try_out(settings: AggregatorSettings, model: GlobalModel, delivery: Delivery) -> str:
    """Return how a process that took in this message ended, in words; an empty string when it lives."""
    layout = model.record.layout
    request = {
        # Never the broker's login.
        "strategy": _given(settings, StrategySettings),
        "limits": _given(settings, Limits),
        "codec": settings.codec,
        "layout": [[spec.name, list(spec.shape), spec.dtype, spec.group] for spec in layout.tensors],
        "frozen": layout.frozen and [layout.frozen.tensors, layout.frozen.parameters, layout.frozen.digest],
        "norms": model.norms,
        "delivery": [delivery.redeliveries, delivery.user, delivery.exchange],
    }
    # The command is made here of this interpreter, and no shell reads it.
    command = [sys.executable, "-m", "fluffle_aggregator.trial"]
    try:
        child = subprocess.run(
            command,
            input=json.dumps(request).encode() + b"\n" + delivery.body,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {TIMEOUT_S:.0f} s"
    except OSError as error:
        log.warning("cannot try a suspicious message: it is taken in as it is", because=str(error))
        return ""
    if child.returncode == 0:
        return ""
    if child.returncode < 0:
        return f"was ended by {signal.Signals(-child.returncode).name}"
    said = child.stderr.decode(errors="replace").strip().splitlines()
    return f"ended with {said[-1][:200] if said else f'exit code {child.returncode}'}"


def _given(settings: AggregatorSettings, kind: type[StrategySettings | Limits]) -> dict[str, Any]:
    return settings.model_dump(include=set(kind.model_fields), exclude_unset=True)


def try_here(request: Mapping[str, Any], body: bytes) -> None:
    """Do with a message what the aggregator does, on a model of zeros of the same layout."""
    tensors = (TensorSpec(name, tuple(shape), *rest) for name, shape, *rest in request["layout"])
    layout = Layout(tuple(tensors), request["frozen"] and FrozenPart(*request["frozen"]))
    try:
        update = decode_inbound(body, most_parameters=layout.size)
    except WireError:
        return  # which the aggregator refuses by itself
    if not isinstance(update, WeightUpdate):
        return
    strategy = StrategySettings.model_validate(request["strategy"]).make_strategy()
    base, plan = Rank(update.base_term, update.base_version), Plan(codec=request["codec"])
    record = ModelVersion(
        federation=update.federation,
        term=base.term,
        version=base.version,
        parent="",
        terms=(base,),
        layout=layout,
        plan=plan,
        strategy=str(strategy),
        vector=np.zeros(layout.size, np.float32),
        statistics=np.zeros(layout.statistics_size, np.float32),
        integers=bytes(layout.integers_size_bytes),
        norms=tuple(request["norms"]),
    )
    model = GlobalModel(record, {}, strategy=strategy, plan=plan, goal=Goal(), term=base.term)
    limits = Limits.model_validate(request["limits"])
    redeliveries, user, exchange = request["delivery"]
    delivery = Delivery(0, body, redeliveries, user, exchange)
    take_in(delivery, model, gates_of(limits, strategy, topology_of(update.federation)), now=0.0)
    model.step()


if __name__ == "__main__":
    try_here(json.loads(sys.stdin.buffer.readline()), sys.stdin.buffer.read())
