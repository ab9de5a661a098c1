"""How many functions of the aggregator one update passes, from its delivery to the fold."""

import sys
from types import FrameType

from builders import a_config, a_strategy, an_update
from fake_broker import FakeBroker
from leading import Clock, a_server, send, take_the_lead, work_off

from fluffle.broker import Delivery
from fluffle.codecs.floats import Float32Vector
from fluffle.update import WeightUpdate
from fluffle_aggregator.accumulators import RunningSum
from fluffle_aggregator.gates.gate import Incoming

MOST_FUNCTIONS = 12
# A function that is handed none of these, such as a discount of a number, is not on the way.
WAYS_TO_HAND_IT_ON = (Delivery, WeightUpdate, Incoming, Float32Vector)


def test_an_update_passes_at_most_twelve_functions_of_the_aggregator_from_delivery_to_fold() -> None:
    config = a_config(a_strategy(buffer_size=4))
    server = a_server(config)
    passed: list[str] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not frame.f_globals.get("__name__", "").startswith("fluffle_aggregator."):
            return
        is_handed_it = any(isinstance(value, WAYS_TO_HAND_IT_ON) for value in frame.f_locals.values())
        if is_handed_it and not frame.f_code.co_qualname.endswith("__init__"):
            passed.append(frame.f_code.co_qualname)

    with FakeBroker(server) as broker:
        leading = take_the_lead(broker, config, Clock())
        send(server, config, an_update("w", 1))
        work_off(leading, broker)
        send(server, config, an_update("w", 2))
        delivery = broker.next_delivery(0)
        assert delivery is not None
        sys.setprofile(note)
        try:
            leading.take_in(delivery)
        finally:
            sys.setprofile(None)

    to_the_fold = passed[: passed.index(RunningSum.adding.__qualname__) + 1]
    assert len(to_the_fold) <= MOST_FUNCTIONS, "\n".join(to_the_fold)
