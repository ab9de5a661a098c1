"""What can be told of a real run: the way of each update, and what a monitor watched."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from event_files import points_in
from looking_back import UPDATES, Run, a_run
from rabbitmqctl import add_user

from fluffle.rights import rights_of
from fluffle_cli.node import BrokerNode
from fluffle_cli.report.run import read_run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run for all tests of this module."""
    folder = tmp_path_factory.mktemp("run")
    with a_run(node, folder, "--tensorboard", "curves") as finished:
        yield finished


def traced(run: Run, update: str, *, broker_url: str | None = None) -> Mapping[str, Any]:
    """Return what `fluffle trace --json` tells."""
    told = run.federation.fluffle("trace", update, "--json", broker_url=broker_url)
    assert told.returncode == 0, told.stderr
    found: Mapping[str, Any] = json.loads(told.stdout)
    return found


def test_an_update_is_followed_from_its_workers_log_into_the_version_that_has_it(run: Run) -> None:
    record, folded = next(
        (record, one) for record in run.versions for one in record.folded if one.id.worker in run.workers
    )
    update, worker = str(folded.id), run.workers[folded.id.worker]

    story = traced(run, update)

    assert (story["outcome"], story["version"], story["term"]) == ("applied", record.version, record.term)
    assert (story["base_version"], story["staleness"]) == (folded.base_version, folded.staleness)
    assert story["weight"] == pytest.approx(folded.weight)
    assert story["published_at"] <= story["received_at"] <= story["committed_at"]
    assert story["rejected"] == []
    # The same ids stand in the properties of the messages, and in the log lines along its way.
    assert {update, f"{run.federation.name}/{record.term}/{record.version}"} <= run.message_ids
    committed = next(
        each for each in run.leader.events("version committed") if update in str(each["applied"])
    )
    assert (committed["version"], committed["federation"]) == (record.version, run.federation.name)
    assert update in [line["update"] for line in worker.events("update published")]
    trained = next(each for each in worker.events("round trained") if each["update"] == update)
    assert (trained["version"], trained["worker"]) == (folded.base_version, folded.id.worker)


def test_a_refused_update_is_told_with_its_reason_and_a_copy_of_an_applied_one_too(run: Run) -> None:
    refused = traced(run, "site-9/r1/2")
    copied = traced(run, "site-9/r1/1")

    assert (refused["outcome"], refused["version"]) == ("rejected", None)
    [message] = refused["rejected"]
    assert message["reason"] == "future-version"
    assert "99" in message["detail"]
    assert message["at"] > 1_700_000_000
    assert "site-9/r1/2" in [line.get("update") for line in run.leader.events("refused")]
    assert copied["outcome"] == "applied"
    assert [each["reason"] for each in copied["rejected"]] == ["duplicate"]


def test_a_monitor_is_told_what_the_records_say_and_that_it_may_not_look_at_what_was_refused(
    run: Run,
) -> None:
    applied = run.federation.fluffle("trace", "site-9/r1/1", broker_url=run.monitor_url)
    refused = traced(run, "site-9/r1/2", broker_url=run.monitor_url)

    assert applied.returncode == 0, applied.stderr
    assert "committed" in applied.stdout
    assert "only an operator may read it" in applied.stdout
    assert "\x1b" not in applied.stdout
    assert (refused["outcome"], refused["rejected"]) == ("not-found", None)


@pytest.mark.parametrize(
    "command",
    [
        ["trace", "w/r/1"],
        ["report", "never", "--from-broker"],
        ["model", "list"],
        ["rejected", "list"],
        ["status"],
    ],
    ids=" ".join,
)
def test_who_asks_once_for_a_federation_that_is_not_there_is_told_so_at_once(
    run: Run, command: list[str]
) -> None:
    told = run.federation.fluffle(*command, "--federation", "nowhere")

    # A line for each attempt would come first, had it waited.
    [said] = told.stderr.splitlines()
    assert told.returncode == 2
    assert said.startswith("error: the federation 'nowhere' is not on RabbitMQ at ")
    assert "no exchange 'nowhere.updates'" in said
    assert said.endswith(": start its aggregator, or look for another one with --federation")
    assert said.count("federation 'nowhere'") == 1


def test_a_federation_that_was_no_demo_has_a_report_of_what_the_stream_still_has(run: Run) -> None:
    out = run.federation.folder / "report"

    told = run.federation.fluffle("report", str(out), "--from-broker")
    again = run.federation.fluffle("report", str(out), "--from-broker")

    assert told.returncode == 0, told.stderr
    assert told.stdout.strip().endswith("report.html")
    found = read_run(out)
    [one] = found.federations
    assert [each.version for each in one.versions] == [record.version for record in run.versions]
    assert one.last.updates == UPDATES
    assert sorted(each.reason for each in one.happened) == sorted(
        str(line["reason"]) for line in run.leader.events("refused")
    )
    assert found.about.versions["broker"].startswith("RabbitMQ ")
    page = (out / "report.html").read_text()
    assert "future-version" in page
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_a_monitor_watches_a_run_to_its_end_and_sees_what_the_records_say(run: Run) -> None:
    looks = [json.loads(line) for line in run.watched.splitlines()]
    newest = run.versions[-1]

    versions = [look["version"] for look in looks]
    assert versions == sorted(versions)
    assert len(set(versions)) > 1
    assert (looks[-1]["version"], looks[-1]["updates"]) == (newest.version, UPDATES)
    assert looks[-1]["finished"] == newest.finished != ""
    assert set(looks[-1]["workers"]) == set(newest.contributors)


def test_whoever_may_not_listen_watches_all_the_same_and_is_told_what_that_costs(
    node: BrokerNode, run: Run
) -> None:
    name = run.federation.name
    worker = f"{name}-worker"
    worker_url = add_user(node, worker, **rights_of("worker", name, worker).patterns)

    watched = run.federation.fluffle("status", "--watch", "--json", broker_url=worker_url)

    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout)["version"] == run.versions[-1].version
    assert "reading the record at every look" in watched.stderr
    assert "Traceback" not in watched.stderr


def test_tensorboard_shows_what_the_evaluator_measured_and_what_each_worker_gave(run: Run) -> None:
    curves = run.federation.folder / "curves"
    points = points_in(curves)

    lines: list[Mapping[str, Any]] = [*run.evaluator.events("evaluated")]
    measured = [line["version"] for line in lines]
    assert [step for step, _ in points["metrics/accuracy"]] == measured
    losses = [pytest.approx(line["metrics"]["loss"], abs=1e-4) for line in lines]
    assert [value for _, value in points["metrics/loss"]] == losses
    by_version = {record.version: record for record in run.versions}
    assert points["staleness/of this version"] == [
        (version, len(by_version[version].folded)) for version in measured if by_version[version].folded
    ]
    assert dict(points["federation/updates"])[measured[-1]] == UPDATES
    for worker, contributor in run.versions[-1].contributors.items():
        assert points_in(curves / "workers" / worker)["worker/updates"][-1][1] == contributor.updates
