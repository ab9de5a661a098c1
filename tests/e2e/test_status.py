"""`fluffle status` as a person or a program calls it, on a real broker."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from time import time

import pytest
from brokers import commit
from builders import a_version, an_evaluation

from fluffle.rabbit import RabbitBroker
from fluffle.record import Contributor, Folded, ModelVersion
from fluffle.topology import Topology
from fluffle.update import UpdateId
from fluffle_cli.node import BrokerNode


@pytest.fixture
def broker(node: BrokerNode, topology: Topology) -> Iterator[RabbitBroker]:
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as connected:
        connected.declare(topology)
        yield connected


def a_busy_version(topology: Topology, number: int, *, finished: str = "") -> ModelVersion:
    return replace(
        a_version(number, finished=finished),
        federation=topology.federation,
        contributors={"w1": Contributor(3, 30, 6, 3.0)},
        evaluation=an_evaluation(number - 1, {"accuracy": 0.9}),
        elapsed_s=10.0,
    )


def status(
    node: BrokerNode, federation: str, *flags: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fluffle_cli.main", "status", "--federation", federation, *flags],
        env=os.environ | {"FLUFFLE_BROKER_URL": node.amqp_url} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_person_sees_version_accuracy_and_workers_without_colour_codes_in_a_pipe(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    commit(broker, topology, a_busy_version(topology, 7))

    seen = status(node, topology.federation)

    assert seen.returncode == 0, seen.stderr
    assert "version 7 (term 1)" in seen.stdout
    assert "accuracy 0.9000 (version 6)" in seen.stdout
    assert "w1" in seen.stdout
    assert "\x1b" not in seen.stdout


def test_a_program_gets_one_json_object_of_one_look_whatever_the_settings_say(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    commit(broker, topology, a_busy_version(topology, 7))

    by_default = status(node, topology.federation, "--json")
    once = status(node, topology.federation, "--json", "--once", FLUFFLE_WATCH="yes")

    for seen in (by_default, once):
        assert seen.returncode == 0, seen.stderr
        [line] = seen.stdout.splitlines()
        assert json.loads(line)["version"] == 7


def test_a_program_gets_one_json_object_a_line_until_the_federation_has_finished(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    record = a_busy_version(topology, 7, finished="enough")
    commit(broker, topology, record)

    seen = status(node, topology.federation, "--watch", "--json", "--interval", "0.1")

    lines = seen.stdout.splitlines()
    assert seen.returncode == 0, seen.stderr
    assert [json.loads(line)["finished"] for line in lines] == ["enough"]
    assert json.loads(lines[0])["workers"]["w1"]["mean_staleness"] == 2.0


def test_a_watched_federation_is_a_line_for_each_look_without_colour_codes_in_a_pipe(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    commit(broker, topology, a_busy_version(topology, 7, finished="enough"))

    seen = status(node, topology.federation, "--watch")

    assert seen.returncode == 0, seen.stderr
    [line] = seen.stdout.splitlines()
    assert "version 7, 3 updates" in line
    assert line.endswith("finished: enough")
    assert "\x1b" not in seen.stdout + seen.stderr


def test_people_and_programs_are_told_what_is_wrong_and_how_each_worker_learns(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    contributors = {
        "tiny": Contributor(98, 3, 0, 98.0, 0, time(), 0.25),
        "large": Contributor(2, 1497, 0, 2.0, 0, time()),
        "foreign": Contributor(rejected=4, refusal="bad-layout: another model"),
    }
    for number, loss in enumerate([1.0, 0.5, 0.25]):
        record = replace(
            a_busy_version(topology, number + 1),
            contributors=contributors,
            folded=(Folded(UpdateId("tiny", "r", number + 1), 0, 0, 1.0, loss=loss),),
            evaluation=an_evaluation(number, {"rmse": math.nan if number == 2 else 3.0 - number}),
            best=an_evaluation(1, {"rmse": 2.0}) if number else None,
            best_by="rmse:min" if number else "",
        )
        commit(broker, topology, record)

    person = status(node, topology.federation)
    program = status(node, topology.federation, "--json")

    told = " ".join(person.stdout.split())
    for said in (
        "rmse NaN (version 2), best (lowest) 2.0000 (version 1)",
        "1 evaluation is not finite: rmse of version 2 is NaN.",
        "tiny has 98 % of the weight, but 0.2 % of the examples (3).",
        "All 4 messages of foreign were refused. The last reason is bad-layout: another model.",
        "foreign only refused never 0",
        "tiny █▃▁ 0.2500",
    ):
        assert said in told
    seen = json.loads(program.stdout, parse_constant=pytest.fail)
    assert [each["kind"] for each in seen["findings"]] == [
        *("no-aggregator", "not-finite", "only-refused", "above-share")
    ]
    assert seen["progress"] == {"state": "not finite", "says": "rmse of version 2 is NaN."}
    assert seen["evaluation"]["metrics"] == {"rmse": "NaN"}
    assert seen["workers"]["tiny"]["losses"] == [1.0, 0.5, 0.25]
    assert seen["workers"]["foreign"]["refusal"] == "bad-layout: another model"


def test_a_federation_without_a_version_says_so_and_one_that_is_not_there_is_an_error(
    node: BrokerNode, broker: RabbitBroker, topology: Topology
) -> None:
    empty = status(node, topology.federation)
    missing = status(node, "nobody-knows")

    assert empty.returncode == 0, empty.stderr
    assert "no version yet" in empty.stdout
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: the federation 'nobody-knows' is not on RabbitMQ at ")
    assert "Traceback" not in missing.stderr
