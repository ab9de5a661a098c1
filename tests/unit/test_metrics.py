"""What the parts count for Prometheus: right numbers, bounded labels, in nobody's way."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import pytest
from fake_broker import FakeBroker, FakeServer
from prometheus_client.parser import text_string_to_metric_families

from fluffle.errors import ConfigError
from fluffle.event_sink import NULL_SINK, EventSink
from fluffle.events import (
    ROLES,
    Aborted,
    Applied,
    Committed,
    Evaluated,
    Event,
    Joined,
    Measured,
    Progressed,
    Published,
    Rejected,
    Role,
    Started,
    TookOver,
    Trained,
)
from fluffle.metrics import metered, server
from fluffle.metrics.meters import MAX_VALUES, OTHER
from fluffle_cli.rabbitmq_server import free_ports

Samples = dict[tuple[str, str], float]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextmanager
def a_part(role: Role, *, host: str = "127.0.0.1") -> Iterator[tuple[EventSink, int]]:
    """Give the event sink of a part called `one`, and the port of its metrics."""
    with (
        free_ports(1) as [port],
        metered(
            NULL_SINK,
            host=host,
            port=port,
            federation="digits",
            role=role,
            name="one",
            waiting=lambda: 7,
        ) as event_sink,
    ):
        yield event_sink, port


def read(port: int, *, host: str = "127.0.0.1") -> str:
    with urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def scrape(port: int) -> Samples:
    """Return each sample by its name and the value of its own label; the other two are the part's."""
    found: Samples = {}
    for family in text_string_to_metric_families(read(port)):
        for name, labels, value, *_ in family.samples:
            if name.startswith("fluffle_"):
                own = {"le", "reason", "metric"} & set(labels)
                assert sorted(labels[each] for each in set(labels) - own) == ["digits", "one"]
                found[name, "".join(labels[each] for each in own)] = value
    return found


def tell(event_sink: EventSink, *events: Event) -> None:
    for event in events:
        event_sink(event)


def an_applied(staleness: int) -> Applied:
    return Applied(staleness, 0.5, 10, 100, 400)


def a_commit(version: int) -> Committed:
    return Committed(version, 3, 0.02, 9.0, 0, 1)


def test_updates_count_once_their_version_is_committed() -> None:
    with a_part("aggregator") as (event_sink, port), event_sink.over(FakeBroker(FakeServer())):
        tell(event_sink, TookOver(3, 4), an_applied(0), an_applied(3))
        folded = scrape(port)
        tell(event_sink, a_commit(5), an_applied(1))
        found = scrape(port)

    assert folded["fluffle_updates_applied_total", ""] == 0
    assert found["fluffle_updates_applied_total", ""] == 2
    assert found["fluffle_commits_total", ""] == found["fluffle_commit_seconds_count", ""] == 1
    assert found["fluffle_commit_seconds_sum", ""] == 0.02
    assert found["fluffle_examples_applied_total", ""] == 20
    assert found["fluffle_update_bytes_total", ""] == 200
    assert found["fluffle_update_float32_bytes_total", ""] == 800
    assert found["fluffle_update_staleness_versions_bucket", "0.0"] == 1
    assert found["fluffle_update_staleness_versions_bucket", "4.0"] == 2
    assert (found["fluffle_version", ""], found["fluffle_term", ""]) == (5, 3)
    assert found["fluffle_best_version", ""] == 1


def test_an_aggregator_that_lost_its_connection_leads_no_more_and_forgets_uncommitted_updates() -> None:
    with a_part("aggregator") as (event_sink, port):
        with event_sink.over(FakeBroker(FakeServer())):
            tell(event_sink, TookOver(1, 0), Evaluated(0, {"accuracy": 0.5}), a_commit(1), an_applied(0))
            leading = scrape(port)
        lost = scrape(port)
        with event_sink.over(FakeBroker(FakeServer())):
            tell(event_sink, TookOver(2, 1), an_applied(0), a_commit(2))
            again = scrape(port)

    assert leading["fluffle_leading", ""] == leading["fluffle_connected", ""] == 1
    assert leading["fluffle_evaluation", "accuracy"] == 0.5
    assert lost["fluffle_leading", ""] == lost["fluffle_connected", ""] == 0
    assert not {"fluffle_version", "fluffle_term", "fluffle_evaluation"} & {name for name, _ in lost}
    assert again["fluffle_updates_applied_total", ""] == 1
    assert again["fluffle_connections_total", ""] == 2


def test_the_last_evaluation_and_the_best_version_are_shown_once_committed() -> None:
    with a_part("aggregator") as (event_sink, port), event_sink.over(FakeBroker(FakeServer())):
        tell(event_sink, Evaluated(0, {"accuracy": 0.1}), Evaluated(1, {"accuracy": 0.5}))
        before = scrape(port)
        event_sink(a_commit(2))
        after = scrape(port)

    shown = {"fluffle_evaluated_version", "fluffle_best_version", "fluffle_evaluation"}
    assert not shown & {name for name, _ in before}
    assert after["fluffle_evaluated_version", ""] == after["fluffle_best_version", ""] == 1
    assert after["fluffle_evaluation", "accuracy"] == 0.5


def test_too_many_reasons_or_metrics_are_counted_under_one_label() -> None:
    with a_part("aggregator") as (event_sink, port):
        for number in range(MAX_VALUES["reason"] + 9):
            event_sink(Rejected("", f"worker {number}", f"reason {number}", ""))
        for number in range(MAX_VALUES["metric"] + 9):
            tell(event_sink, Evaluated(number, {f"metric {number}": number}), a_commit(number))
        event_sink(Rejected("", "again", "reason 0", ""))
        found = scrape(port)

    reasons = {label: value for (name, label), value in found.items() if name == "fluffle_rejected_total"}
    metrics = {label for name, label in found if name == "fluffle_evaluation"}
    assert len(reasons) == MAX_VALUES["reason"] + 1
    assert (reasons[OTHER], reasons["reason 0"]) == (9, 2)
    assert len(metrics) == MAX_VALUES["metric"] + 1


def test_a_worker_counts_its_rounds_and_the_updates_in_its_spool() -> None:
    with a_part("worker") as (event_sink, port):
        tell(event_sink, Joined(), Started(4), Progressed(1, 4))
        training = scrape(port)
        tell(event_sink, Aborted(4, 9, 1.0), Trained("w/r/1", 2.0), Published(100))
        found = scrape(port)

    assert training["fluffle_worker_round_done_ratio", ""] == 0.25
    assert found["fluffle_worker_base_version", ""] == 4
    assert found["fluffle_worker_train_seconds_sum", ""] == 2.0
    assert found["fluffle_worker_train_seconds_count", ""] == 1
    assert found["fluffle_worker_rounds_aborted_total", ""] == 1
    assert found["fluffle_worker_updates_published_total", ""] == 1
    assert found["fluffle_worker_published_bytes_total", ""] == 100
    assert found["fluffle_worker_spool_updates", ""] == 7


def test_an_evaluator_counts_its_evaluations() -> None:
    with a_part("evaluator") as (event_sink, port):
        tell(event_sink, Measured(3, 0.5), Measured(6, 1.5))
        found = scrape(port)

    assert found["fluffle_evaluator_version", ""] == 6
    assert found["fluffle_evaluator_evaluation_seconds_sum", ""] == 2.0


def test_the_error_of_a_port_in_use_says_what_to_do() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(
            ConfigError, match=r"--metrics-port \d+ cannot be opened on --metrics-host 127.0.0.1: .*"
        ),
        metered(
            NULL_SINK,
            host="127.0.0.1",
            port=other.getsockname()[1],
            federation="digits",
            role="worker",
            name="one",
        ),
    ):
        pass


@pytest.mark.parametrize("role", ROLES)
def test_only_metrics_of_fluffle_and_of_the_process_are_served(role: Role) -> None:
    with a_part(role) as (_, port):
        names = {line.split()[2] for line in read(port).splitlines() if line.startswith("# TYPE ")}

    assert names
    assert not [name for name in names if not name.startswith(("fluffle_", "process_"))]
    assert not [name for name in names if name.endswith("_created")]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no address ::1")
def test_metrics_are_served_over_ipv6_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), a_part("worker", host="::1") as (_, port):
        assert "fluffle_connected" in read(port, host="[::1]")

    assert f"http://[::1]:{port}/metrics" in caplog.text


def test_a_client_that_sends_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server._Handler, "timeout", 0.1)

    with a_part("worker") as (_, port), socket.create_connection(("127.0.0.1", port)):
        assert scrape(port)


def test_without_a_port_nothing_is_counted_and_nothing_is_loaded() -> None:
    with metered(NULL_SINK, host="", port=None, federation="digits", role="worker", name="one") as event_sink:
        assert event_sink is NULL_SINK
    loaded = "import sys, fluffle_aggregator.__main__; print('prometheus_client' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)

    assert said.stdout == "False\n"
