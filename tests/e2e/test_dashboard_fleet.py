"""The live page of 2,000 workers, in a real Chromium and over a real broker."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import time

import pytest
from brokers import commit
from browser import a_browser, complaints_of, rows_of, text_of
from builders import a_version
from federation import wait_until
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from fluffle.event_sink import ReportingSink
from fluffle.events import Committed, Event, Happened, Joined, Report, Started, TookOver
from fluffle.rabbit import RabbitBroker
from fluffle.record import Contributor, ModelVersion
from fluffle.topology import Topology
from fluffle.wire import encode_report
from fluffle_cli.dashboard.program import DashboardSettings, Watch
from fluffle_cli.dashboard.server import PageServer, serving
from fluffle_cli.dashboard.table import PAGE_ROWS
from fluffle_cli.node import BrokerNode

pytestmark = pytest.mark.long

WORKERS = 2_000
NAMES = [f"w{number:04}" for number in range(WORKERS)]
# Far fewer than there are workers.
MOST_ELEMENTS = 1_000
MOST_BYTES_OF_AN_ANSWER = 25_000


@pytest.fixture
def broker(node: BrokerNode, topology: Topology) -> Iterator[RabbitBroker]:
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=20) as connected:
        connected.declare(topology)
        commit(connected, topology, a_fleet(topology, version=0, updates=0))
        yield connected


@pytest.fixture
def page(node: BrokerNode, topology: Topology, broker: RabbitBroker, tmp_path: Path) -> Iterator[Chrome]:
    """The page of a federation that has its first version."""
    stop = threading.Event()
    watch = Watch(DashboardSettings(federation=topology.federation, broker_url=node.amqp_url), stop)
    watching = threading.Thread(target=watch.run)
    watching.start()
    try:
        with serving(PageServer(watch.view, "127.0.0.1", 0)) as server, a_browser(tmp_path) as browser:
            browser.get(server.url)
            wait_until(lambda: browser.title == f"{topology.federation}: version 0", "the page")
            yield browser
            assert complaints_of(browser) == []
    finally:
        stop.set()
        watching.join()


def test_two_thousand_workers_are_searched_and_sorted_and_the_page_stays_small(
    page: Chrome, broker: RabbitBroker, topology: Topology
) -> None:
    leader = ReportingSink(topology, role="aggregator", name="first")
    with leader.over(broker):
        leader(TookOver(1, 0))
        tell_of_all(broker, topology, lambda _: Joined())
        wait_until(lambda: text_of(page, "found") == "2,000 workers", "everybody")
        commit(broker, topology, a_fleet(topology, version=1, updates=1))
        leader(Committed(1, 1, 0.1, 1.0, 0, -1))
        wait_until(lambda: text_of(page, "page") == "page 1 of 40", "forty pages")
        wait_until(lambda: [row["updates"] for row in rows_of(page)] == [1] * PAGE_ROWS, "their updates")

        page.find_element(By.CSS_SELECTOR, "[data-column=examples] button").click()
        wait_until(lambda: names_in(page) == NAMES[: -PAGE_ROWS - 1 : -1], "who has the most examples")
        page.find_element(By.ID, "search").send_keys("W19")
        wait_until(lambda: text_of(page, "found") == "100 of 2,000 workers", "those that were sought")
        page.find_element(By.ID, "next").click()
        wait_until(lambda: names_in(page) == NAMES[1949:1899:-1], "the rest of them")
        # Once more about everybody.
        tell_of_all(broker, topology, lambda _: Started(1))
        wait_until(
            lambda: {row["state"] for row in rows_of(page)} == {"training: from version 1"}, "the new state"
        )

    elements = page.execute_script("return document.querySelectorAll('*').length")
    answers = page.execute_script(
        "return performance.getEntriesByType('resource').filter((each) => each.name.includes('/api/'))"
        ".map((each) => each.decodedBodySize)"
    )
    assert len(names_in(page)) == PAGE_ROWS
    assert elements < MOST_ELEMENTS
    assert 0 < max(answers) < MOST_BYTES_OF_AN_ANSWER


def a_fleet(topology: Topology, *, version: int, updates: int) -> ModelVersion:
    """Return a record to which everybody has contributed, each with more examples than the last."""
    contributors = {
        name: Contributor(updates, number, 0, 1.0) for number, name in enumerate(NAMES) if updates
    }
    return replace(a_version(version), federation=topology.federation, contributors=contributors)


def tell_of_all(broker: RabbitBroker, topology: Topology, event_of: Callable[[str], Event]) -> None:
    """Tell an event of each worker, as it would itself with a user of its own."""
    for name in NAMES:
        report = Report(topology.federation, "worker", name, (Happened(time(), event_of(name)),))
        broker.publish_unconfirmed(topology.events.name, f"worker.{name}", encode_report(report))


def names_in(page: Chrome) -> list[str]:
    """Return the names in the table, as they stand there."""
    return [str(row["name"]) for row in rows_of(page)]
