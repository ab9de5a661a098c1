"""The live page in a real Chromium, of a real federation."""

import json
import threading
from collections.abc import Iterator
from time import time

import pytest
from browser import a_browser, complaints_of, rows_of, shown, text_of, texts_of
from federation import Federation, assert_refused, wait_until
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from fluffle.errors import LoginRefused
from fluffle.events import Happened, Rejected, Report
from fluffle.management import ManagementSettings
from fluffle.rights import password_hash, rights_of
from fluffle.wire import encode_report
from fluffle_cli.dashboard.program import DashboardSettings, Watch
from fluffle_cli.dashboard.server import PageServer, serving, token_for
from fluffle_cli.node import BrokerNode

SCRIPT = "<script>document.title='pwned'</script>"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerNode, Federation]]:
    """A federation on a node of its own, which a test may restart."""
    folder = tmp_path_factory.mktemp("dashboard")
    with (
        BrokerNode.start(folder / "node") as node,
        Federation("seen", node.amqp_url, folder, task="numpy_task:task") as federation,
    ):
        yield node, federation


@pytest.fixture(scope="module")
def page(
    running: tuple[BrokerNode, Federation], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chrome]:
    """The page of that federation, with a monitor's rights, opened before there was one, and left open."""
    node, federation = running
    flags = [
        "--dashboard-port",
        "0",
        "--broker-url",
        a_user(node, federation, "monitor", role="monitor"),
        "--management-url",
        node.management_url or "",
    ]
    dashboard = federation.start("dashboard", "fluffle_cli.main", "dashboard", *flags)
    wait_until(lambda: "http://" in dashboard.log.read_text(), "the page's address")
    [line] = [line for line in dashboard.log.read_text().splitlines() if "http://" in line]
    with a_browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.get(line.split()[-1])
        yield browser
    assert "Traceback" not in dashboard.log.read_text()
    dashboard.ask_to_stop()
    assert dashboard.wait_for_exit() == 0


def test_the_page_shows_who_leads_who_stands_by_and_each_takeover(
    running: tuple[BrokerNode, Federation], page: Chrome
) -> None:
    _, federation = running
    wait_until(lambda: "start its aggregator" in text_of(page, "condition"), "the page to miss a federation")
    assert text_of(page, "condition").startswith("not connected: the federation 'seen' is not on")

    flags = ["--buffer-size", "2", "--local-steps", "5", "--max-updates", "12"]
    first = federation.aggregator("first", *flags)
    first.wait_for("leading")
    second = federation.aggregator("second", *flags)
    second.wait_for("standing by")
    wait_until(lambda: text_of(page, "leader") == "Leader: first. Standing by: second.", "the standby")
    first.kill()
    # What it says first wakes the standby.
    federation.evaluator()
    second.wait_for("evaluated")

    wait_until(lambda: text_of(page, "leader").startswith("Leader: second. Nobody stands by"), "the takeover")
    terms = [texts_of(page, f"#terms td:nth-child({column})") for column in (1, 2, 3)]
    assert terms == [["2", "1"], ["second", "first"], ["0", "0"]]
    # Not before: they may end the whole run between two looks at the page.
    for site in range(2):
        federation.worker(site)


def test_the_numbers_on_the_page_are_those_of_status(
    running: tuple[BrokerNode, Federation], page: Chrome
) -> None:
    _, federation = running
    at_work = [part for part in federation.parts if part.name not in {"dashboard", "first"}]
    assert [part.wait_for_exit() for part in at_work] == [0, 0, 0, 0]
    seen = json.loads(federation.fluffle("status", "--json").stdout)
    wait_until(
        lambda: text_of(page, "condition") == f"finished: {seen['finished']}", "the page to see the end"
    )
    wait_until(lambda: shown(page).get("updates") == 12, "the last record")
    wait_until(
        lambda: [row["state"].partition(":")[0] for row in rows_of(page)] == ["left"] * 2, "both to have left"
    )

    waiting = ("updates_waiting", "rejected_waiting")
    wait_until(lambda: all(shown(page)[key] == seen["queues"][key] for key in waiting), "the same queues")
    now = shown(page)
    for key in ("version", "term", "updates", "rejected", "elapsed_s", "parameters", "target_held"):
        assert now[key] == seen[key], key
    assert len(texts_of(page, "#now dt")) == 8
    assert text_of(page, "progress") == seen["progress"]["says"]
    words = texts_of(page, "#now dt, #more dt")
    for key, which in (("evaluation", ""), ("best", ", the best")):
        for metric, value in seen[key]["metrics"].items():
            assert now[f"{key}_{metric}"] == value
            # Of the metric that says what is best, its direction follows.
            assert any(
                word.startswith(f"{metric} of version {seen[key]['version']}{which}") for word in words
            )
    rows = {row["name"]: row for row in rows_of(page)}
    # One that is slow to start may come when all is done.
    assert {"site-0", "site-1"} == set(rows) >= set(seen["workers"])
    for name, facts in seen["workers"].items():
        for key in ("updates", "examples", "mean_staleness", "weight_share", "rejected"):
            assert rows[name][key] == facts[key], (name, key)
        assert rows[name]["round_s"] > 0
        assert len(rows[name]["losses"]) >= len(facts["losses"]) == facts["updates"]
    assert text_of(page, "leader") == "The last leader was second."
    assert complaints_of(page) == []
    assert sum(int(count) for count in texts_of(page, "#staleness td:nth-child(2) span:first-child")) == 12


def test_nothing_comes_from_elsewhere_and_the_browser_has_no_complaint(page: Chrome) -> None:
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")

    assert loaded
    assert all(str(name).startswith(page.current_url) for name in loaded), loaded
    assert len(page.find_elements(By.CSS_SELECTOR, "#quality canvas")) == 2
    assert complaints_of(page) == []


def test_workers_are_searched_and_sorted_with_the_keyboard(page: Chrome) -> None:
    search = page.find_element(By.ID, "search")
    search.send_keys("SITE-1")
    wait_until(lambda: [row["name"] for row in rows_of(page)] == ["site-1"], "the one that was sought")
    search.clear()
    search.send_keys(" ", "\b")
    wait_until(lambda: len(rows_of(page)) == 2, "all again")

    page.find_element(By.CSS_SELECTOR, "[data-column=name] button").send_keys("\n")

    wait_until(lambda: [row["name"] for row in rows_of(page)] == ["site-1", "site-0"], "the other order")
    assert page.find_element(By.CSS_SELECTOR, "[data-column=name]").get_attribute("aria-sort") == "descending"


def test_after_a_restart_of_the_broker_the_page_goes_on_and_a_script_tag_is_text(
    running: tuple[BrokerNode, Federation], page: Chrome
) -> None:
    node, federation = running
    node.stop()
    missed = "not connected: no RabbitMQ answers at "
    wait_until(lambda: text_of(page, "condition").startswith(missed), "the page to miss the broker")
    assert shown(page)["updates"] == 12
    node.restart()
    wait_until(lambda: text_of(page, "condition").startswith("finished"), "the page to be back")

    refusal = Rejected("", SCRIPT, "foreign sender", f"from {SCRIPT}")
    report = Report(federation.name, "aggregator", "second", (Happened(time(), refusal),))
    with federation.connect() as broker:
        broker.publish_unconfirmed(
            federation.topology.events.name, "aggregator.second", encode_report(report)
        )
        wait_until(lambda: newest_refusal(page).endswith(f"from {SCRIPT}: from {SCRIPT}"), "the refusal")

    assert page.title.startswith("seen: version ")
    assert page.find_elements(By.CSS_SELECTOR, "main script") == []
    page.refresh()
    wait_until(lambda: SCRIPT in newest_refusal(page), "the page after a reload")


def test_the_printed_address_lets_a_browser_in_and_leaves_no_token_behind(
    running: tuple[BrokerNode, Federation], page: Chrome
) -> None:
    _, federation = running
    watch = Watch(DashboardSettings(federation=federation.name), threading.Event())
    with serving(PageServer(watch.view, "127.0.0.1", 0)) as server:
        server.token = token_for("0.0.0.0")
        address = server.url.partition("?")[0]

        page.get(address)
        outside = page.find_element(By.TAG_NAME, "body").text
        page.get(server.url)
        wait_until(lambda: "not connected" in text_of(page, "condition"), "the page to be let in")

        assert "the token in it lets you in" in outside
        assert page.current_url == address


def test_a_user_without_the_rights_of_a_monitor_is_told_so(running: tuple[BrokerNode, Federation]) -> None:
    node, federation = running
    flags = ["--dashboard-port", "0", "--broker-url", a_user(node, federation, "site-9", role="worker")]

    refused = federation.start("refused", "fluffle_cli.main", "dashboard", *flags)

    assert_refused(refused, "site-9", "no right", "seen.events")


def test_a_page_beside_another_program_says_why_it_knows_nothing_more(
    running: tuple[BrokerNode, Federation],
) -> None:
    node, _ = running
    url = node.amqp_url.replace(f":{node.password}@", ":wrong@")
    watch = Watch(DashboardSettings(federation="seen", broker_url=url), threading.Event())

    with pytest.raises(LoginRefused):
        watch.run()

    assert "refused the user" in watch.view().trouble


def a_user(node: BrokerNode, federation: Federation, name: str, *, role: str) -> str:
    """Make a user with the rights of a role, and return the URL that it connects with."""
    settings = ManagementSettings(broker_url=node.amqp_url, management_url=node.management_url)
    with settings.management() as management:
        hashed = password_hash("secret", b"salt")
        management.put_user(name, rights_of(role, federation.name, name), hashed)
    return f"amqp://{name}:secret@127.0.0.1:{node.amqp_port}/%2F"


def newest_refusal(page: Chrome) -> str:
    """Return the text of the newest refusal in full, empty where there is none."""
    return next(iter(texts_of(page, "#rejections li")), "")
