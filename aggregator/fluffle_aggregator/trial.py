"""Tries a message that may have killed an aggregator before, in a process that it may kill too.

RabbitMQ counts how often it has delivered a message. One that comes for the third time was in the hands of
two aggregators that died. Whether it was the cause, or only waited beside the cause, shows here: the child
reads it, and passes it through the same gates into a model of zeros. docs/decisions/0008 says why.
"""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np

from fluffle.broker import Delivery
from fluffle.logs import get_logger
from fluffle.record_wire import decode_without_weights, version_pieces, without_weights
from fluffle.secure.closing import MOST_UPDATES
from fluffle.survey.messages import SiteStatistics
from fluffle.topology import topology_of
from fluffle_aggregator.gates.limits import Limits, gates_of
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import Goal
from fluffle_aggregator.intake import take_in
from fluffle_aggregator.private.sums import AddedNoise, NoNoise, PrivateSums, grid_of
from fluffle_aggregator.private.weighing import private
from fluffle_aggregator.sealed.sealed_model import SealedModel
from fluffle_aggregator.sealed.settings import sealed
from fluffle_aggregator.secure.state import SecureState
from fluffle_aggregator.secure.weighing import secured
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies.registry import StrategySettings
from fluffle_aggregator.survey import SurveyAim

log = get_logger(__name__)

TIMEOUT_S = 120.0


def try_out(settings: AggregatorSettings, model: GlobalModel, delivery: Delivery) -> str:
    """Return how a process that took in this message ended, in words; an empty string when it lives."""
    record = without_weights(version_pieces(model.next_record(now=0.0)))
    request = {
        "record_bytes": len(record),
        "delivery": [delivery.redeliveries, delivery.user, delivery.exchange],
    }
    for kind in (StrategySettings, Limits):
        # Never the broker's login.
        request[kind.__name__] = settings.model_dump(include=set(kind.model_fields), exclude_unset=True)
    # The command is made here of this interpreter, and no shell reads it.
    command = [sys.executable, "-m", "fluffle_aggregator.trial"]
    try:
        child = subprocess.run(
            command,
            input=b"".join((json.dumps(request).encode(), b"\n", record, delivery.body)),
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


def main() -> None:
    """Do with a message what the aggregator does, on a model of zeros beside the same record."""
    request = json.loads(sys.stdin.buffer.readline())
    record = decode_without_weights(sys.stdin.buffer.read(request["record_bytes"]))
    layout = record.layout
    zeros = replace(
        record,
        vector=np.zeros(layout.size, np.float32),
        statistics=np.zeros(layout.statistics_size, np.float32),
        integers=bytes(layout.integers_size_bytes),
    )
    strategy = StrategySettings.model_validate(request["StrategySettings"]).make_strategy()
    limits = Limits.model_validate(request["Limits"])
    # So that an answer is taken in too, if a survey is open.
    is_open = record.survey is not None and record.survey.is_open
    survey_aim = SurveyAim(wanted=MOST_UPDATES if is_open else 0)
    sums = None
    if (promised := record.plan.privacy) and record.privacy:
        strategy, added = private(strategy, promised.mechanism), None
        if promised.mechanism == "central":
            clip = record.privacy.clip_of(promised)
            added = AddedNoise(NoNoise(), grid_of(promised, layout.size, clip), strategy.buffer_size)
        sums = PrivateSums(promised, record.privacy, added)
    strategy, secure = secured(strategy, record.plan.secure), None
    if sealed_plan := record.plan.sealed:
        strategy = sealed(strategy, sealed_plan)
    if plan := record.plan.secure:
        # Who takes part is for the leader to say: here all that have a name do.
        secure = SecureState(
            plan,
            zeros,
            buffer_size=strategy.buffer_size,
            fewest_workers=1,
            registered=frozenset([str(request["delivery"][1])]),
            survey_size=survey_aim.wanted,
        )
    model = GlobalModel(
        zeros,
        strategy=strategy,
        plan=record.plan,
        goal=Goal(),
        term=record.term,
        survey_aim=survey_aim,
        secure=secure,
        private=sums,
        sealed=SealedModel.of(zeros, record.plan.sealed),
    )
    redeliveries, user, exchange = request["delivery"]
    delivery = Delivery(0, sys.stdin.buffer.read(), redeliveries, user, exchange)
    taken = take_in(delivery, model, gates_of(limits, strategy, topology_of(record.federation)), now=0.0)
    model.step()
    if model.survey and isinstance(taken, SiteStatistics):
        model.survey.add(taken)


if __name__ == "__main__":
    main()
