"""Updates that wait beside a masked buffer: they come in as soon as they can, and cost nobody anything."""

from dataclasses import replace

from fake_broker import FakeBroker
from leading import Clock, a_server, newest, rejected, send, take_the_lead, unacked, versions, work_off
from securing import VALUES, WORKERS, a_masked, a_secure_config, go_on, helpers

from fluffle_aggregator.gates.limits import Limits


def test_hundreds_of_updates_that_waited_for_a_sum_are_taken_in_at_once() -> None:
    config = a_secure_config(buffer_size=600)
    each = 600 // len(WORKERS)
    server = a_server(config, *(a_masked(name, number) for number in range(1, each + 1) for name in WORKERS))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        work_off(leader, broker)
        send(
            server,
            config,
            *(a_masked(name, each + number) for number in range(1, each + 1) for name in WORKERS),
        )
        work_off(leader, broker)
        go_on(leader, broker, helpers(server, config))

    assert [len(version.folded) for version in versions(server, config)] == [0, 600, 600]
    assert unacked(server, config) == []


def test_an_update_that_waited_counts_once_for_the_limit_of_messages() -> None:
    config = replace(a_secure_config(), limits=Limits(limit_messages=2))
    server = a_server(config, *(a_masked(name) for name in VALUES))
    with FakeBroker(server) as broker:
        leader = take_the_lead(broker, config, Clock())
        work_off(leader, broker)
        # They wait for the sum, and then for the next buffer.
        send(server, config, *(a_masked(name, 2) for name in VALUES))
        work_off(leader, broker)
        go_on(leader, broker, helpers(server, config))

    assert rejected(server, config) == []
    assert newest(server, config).version == 2
