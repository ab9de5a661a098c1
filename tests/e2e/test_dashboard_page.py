"""What the live page makes of what it is told, in a real Chromium."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from time import time

import pytest
from browser import a_browser, complaints_of, rows_of, text_of, texts_of
from builders import a_version, an_evaluation
from federation import wait_until
from sealing import a_sealed_version
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By

from fluffle.events import Committed, Evaluated, Event, Happened, Rejected, Report, Role, TookOver, Trained
from fluffle.record import Contributor, ModelVersion, Rank
from fluffle.sealed.parameters import LARGEST_VALUE
from fluffle.sealed.plan import SealedState
from fluffle.sites import Gain, SiteMetric, SiteReport
from fluffle_cli.dashboard.server import PageServer, serving
from fluffle_cli.watching.state import FederationState
from fluffle_cli.watching.view import FederationView, QueueStates, Version

DAY_S = 86_400.0
DRAWN = """
const draw = CanvasRenderingContext2D.prototype.fillText;
window.drawn = [];
CanvasRenderingContext2D.prototype.fillText = function (text, ...more) {
  window.drawn.push(text);
  return draw.call(this, text, ...more);
};
"""


class Told:
    """A federation that does what a test says."""

    def __init__(self, began: float) -> None:
        self.state = FederationState("told", began)
        self.state.listen_from(began)
        self._lock = threading.Lock()

    def view(self) -> FederationView:
        with self._lock:
            return self.state.view(time())

    def look(self, at: float, *, rejected: int = 0) -> None:
        queues = QueueStates(updates_waiting=0, aggregator_active=True, rejected_waiting=rejected)
        with self._lock:
            self.state.known.trouble = ""
            self.state.look(queues, at)

    def read(self, version: ModelVersion) -> None:
        with self._lock:
            self.state.read(Version.of(version))

    def tell(self, *events: Event, name: str = "first", role: Role = "aggregator") -> None:
        now = time()
        happened = tuple(Happened(now, event) for event in events)
        with self._lock:
            self.state.hear(Report("told", role, name, happened), now)

    def evaluate(self, version: int) -> None:
        """Make a version, and measure it."""
        self.tell(
            Committed(version, 1, 0.1, 10.0 * version, 0, 0),
            Evaluated(version, {"accuracy": version / 100}),
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with a_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@contextmanager
def shown_in(browser: Chrome, told: Told) -> Iterator[None]:
    """Show it in the browser, which must have nothing to complain of at the end."""
    with serving(PageServer(told.view, "127.0.0.1", 0)) as server:
        browser.get(server.url)
        wait_until(lambda: text_of(browser, "federation") == "told", "the page to be told")
        yield
        assert complaints_of(browser) == []
        browser.get("about:blank")


def test_a_curve_goes_on_saying_the_value_under_the_pointer(browser: Chrome) -> None:
    told = Told(time())
    for version in range(10):
        told.evaluate(version)

    with shown_in(browser, told):
        wait_until(lambda: value_of(browser, "quality") == "0.09 (version 9, after 90 s)", "the newest value")
        curve = browser.find_element(By.CSS_SELECTOR, "#quality .u-over")
        ActionChains(browser).move_to_element_with_offset(curve, 4 - curve.size["width"] // 2, 0).perform()
        wait_until(lambda: value_of(browser, "quality").startswith("0 (version 0,"), "the value pointed at")
        browser.execute_script(
            "window.said = new Set();"
            "const value = document.querySelector('#quality .value');"
            "new MutationObserver(() => window.said.add(value.textContent))"
            ".observe(value, { childList: true, characterData: true, subtree: true });"
        )

        for version in (10, 11):
            told.evaluate(version)
            await_evaluation(browser, version)

        assert value_of(browser, "quality").startswith("0 (version 0,")
        assert browser.execute_script("return [...window.said]") == []


def test_no_more_is_read_out_than_what_happens_to_the_federation_and_what_was_sought(browser: Chrome) -> None:
    told = Told(time())
    told.evaluate(1)

    with shown_in(browser, told):
        wait_until(lambda: value_of(browser, "quality") != "", "a curve")
        spoken = browser.execute_script(
            "return [...document.querySelectorAll('output, [aria-live], [role=status], [role=alert]')]"
            ".map((each) => each.id)"
        )

    assert spoken == ["condition", "found"]


def test_a_curve_of_more_than_a_day_has_dates(browser: Chrome) -> None:
    now = time()
    told = Told(now - 3 * DAY_S)
    for hour in range(73):
        told.look(now - 3 * DAY_S + 3600 * hour)

    with shown_in(browser, told):
        browser.execute_script(DRAWN)
        yesterday = datetime.fromtimestamp(now - DAY_S)
        # In some months it is a letter longer.
        date = f"{yesterday.day} {yesterday:%b}"

        def dates() -> list[str]:
            return [each for each in browser.execute_script("return window.drawn") if each.startswith(date)]

        told.look(now)
        wait_until(lambda: bool(dates()), f"{date} on an axis")
        value = value_of(browser, "activity")
        curve = browser.find_element(By.CSS_SELECTOR, "#activity .u-over")
        ActionChains(browser).move_to_element_with_offset(curve, 4 - curve.size["width"] // 2, 0).perform()
        # The pointer is at the first hour or the second, which may be after midnight.
        hours = [datetime.fromtimestamp(now - 3 * DAY_S + 3600 * each) for each in (0, 1, 2)]
        wait_until(
            lambda: any(f"({each.day} {each:%b}" in value_of(browser, "activity") for each in hours),
            "the date of a value",
        )

    assert value.startswith("0.0 (")
    assert "," not in value  # today's has no date


def test_accuracy_comes_first_and_each_figure_says_of_which_version(browser: Chrome) -> None:
    told = Told(time())
    newest, best = an_evaluation(8, {"accuracy": 0.8}), an_evaluation(5, {"accuracy": 0.9})
    told.read(replace(a_version(9), evaluation=newest, best=best, best_by="accuracy:max"))

    with shown_in(browser, told):
        told.tell(Evaluated(9, {"accuracy": 0.7}))
        wait_until(
            lambda: value_of(browser, "quality").startswith("0.7 (version 9,"), "the newest evaluation"
        )

        words = [texts_of(browser, "#now dt")[:3], texts_of(browser, "#now dd")[:3]]

    assert words == [
        ["accuracy of version 9", "accuracy of version 5, the best (highest)", "version"],
        ["0.7", "0.9", "9"],
    ]


def test_the_page_begins_with_at_most_eight_figures_and_folds_the_others_away(browser: Chrome) -> None:
    told = Told(time())
    metrics = {"accuracy": 0.8, "loss": 0.6, "auc": 0.9, "f1": 0.7}
    newest, best = an_evaluation(8, metrics), an_evaluation(5, metrics)
    told.read(replace(a_version(9), evaluation=newest, best=best, best_by="loss:min"))

    with shown_in(browser, told):
        wait_until(lambda: len(texts_of(browser, "#more dt")) > 9, "the other figures")
        first, more = texts_of(browser, "#now dt"), browser.find_element(By.ID, "more")
        was_shown = more.is_displayed()
        browser.find_element(By.CSS_SELECTOR, "details:has(#more) summary").click()

        assert first[:2] == ["loss of version 8", "loss of version 5, the best (lowest)"]
        assert len(first) == 8
        assert not was_shown
        assert more.is_displayed()
        assert "loss, the lowest" in texts_of(browser, "#more dd")
        label = browser.find_element(By.CSS_SELECTOR, "#quality .plot").get_attribute("aria-label")
        assert label is not None
        assert label.endswith(", best: version 5")


def test_the_page_of_a_sealed_federation_says_what_is_encrypted_and_how_far_its_range_is_used(
    browser: Chrome,
) -> None:
    told = Told(time())
    state = SealedState(weights=64, counted_from=64, largest=LARGEST_VALUE / 4, refreshes=2)
    told.read(replace(a_sealed_version(9, weights=64), sealed=state))

    with shown_in(browser, told):
        wait_until(lambda: "sealed with the key 01234567" in texts_of(browser, "#more dt"), "the figures")
        browser.find_element(By.CSS_SELECTOR, "details:has(#more) summary").click()
        figures = dict(zip(texts_of(browser, "#more dt"), texts_of(browser, "#more dd"), strict=True))

    assert figures["sealed with the key 01234567"] == "4 of 4 parameters"
    assert figures["range of the ciphertexts that is used"] == "25 %"
    assert figures["times that the sum was encrypted anew"] == "2"
    assert not complaints_of(browser)


def test_what_is_wrong_stands_under_the_figures_and_a_number_that_is_not_finite_is_shown(
    browser: Chrome,
) -> None:
    told = Told(time())
    told.look(time())
    newest = an_evaluation(8, {"loss": math.nan, "accuracy": 0.1})
    refused = Contributor(rejected=2, refusal="bad-layout: other shapes")
    told.read(replace(a_version(9), evaluation=newest, contributors={"w1": refused}))
    for sequence, loss in enumerate([0.5, 0.25, math.nan]):
        told.tell(Trained(f"w1/r/{sequence}", 1.0, loss), role="worker", name="w1")

    with shown_in(browser, told):
        wait_until(lambda: len(texts_of(browser, "#findings li")) == 4, "what is wrong")
        said = texts_of(browser, "#findings li")
        wait_until(lambda: [row["name"] for row in rows_of(browser)] == ["w1"], "the worker")

        assert said[0].startswith("1 evaluation is not finite: loss of version 8 is NaN. The learning rate")
        assert said[1].startswith("The training loss of w1 is not finite.")
        assert said[2].startswith("All 2 messages of w1 were refused. The last reason is bad-layout")
        assert texts_of(browser, "#quality .value")[1].startswith("NaN (version 8,")
        assert texts_of(browser, "#workers-rows td:last-child") == ["█▁? NaN"]


def test_after_the_end_the_picture_says_nothing_of_waiting_updates_and_aggregators(browser: Chrome) -> None:
    told = Told(time())
    told.look(time())
    told.tell(TookOver(1, 0))
    told.read(replace(a_version(9), closing="enough"))

    with shown_in(browser, told):
        wait_until(
            lambda: text_of(browser, "condition") == "ending, while its last model is evaluated: enough",
            "the last evaluation to be waited for",
        )
        told.read(a_version(10, finished="enough"))
        told.tell(Rejected("w1/r/9", "w1", "finished", "the federation has finished"))
        wait_until(lambda: text_of(browser, "condition") == "finished: enough", "the end")
        wait_until(lambda: text_of(browser, "after-the-end") != "", "what came after it")

        assert text_of(browser, "leader") == "The last leader was first."
        assert "messages waiting" not in texts_of(browser, "#now dt")
        assert text_of(browser, "rejections-unheard") == "Nothing was refused."
        assert text_of(browser, "after-the-end") == "Came after the end, and not counted above: 1."


def test_what_is_said_of_rejections_goes_with_their_number(browser: Chrome) -> None:
    told = Told(time())
    told.look(time())
    told.read(a_version(1))

    with shown_in(browser, told):
        wait_until(lambda: text_of(browser, "rejections-unheard") == "Nothing was refused.", "that none is")
        told.read(replace(a_version(2), rejected=2))
        wait_until(
            lambda: text_of(browser, "rejections-unheard").startswith("2 refused while nobody listened"),
            "those that are known by number",
        )
        told.tell(Rejected("w1/r/1", "w1", "too stale", "by 9"))
        told.read(replace(a_version(3), rejected=3))
        wait_until(
            lambda: text_of(browser, "rejections-unheard").startswith("2 more refused while"), "the others"
        )
        assert texts_of(browser, "#reasons td") == ["too stale", "1"]


def test_a_page_that_gets_no_answer_says_why_and_keeps_what_it_shows(browser: Chrome) -> None:
    told = Told(time())
    told.read(a_version(4))
    with serving(PageServer(told.view, "127.0.0.1", 0)) as server:
        browser.get(server.url)
        wait_until(lambda: browser.title == "told: version 4", "the page")

        server.token = "of another start"
        wait_until(lambda: "was restarted" in text_of(browser, "condition"), "the page to be turned away")
        browser.set_network_conditions(offline=True, latency=0, throughput=0)
        wait_until(lambda: "does not answer" in text_of(browser, "condition"), "the page to miss its program")

    assert "; this is how it was at " in text_of(browser, "condition")
    assert texts_of(browser, "#now dd")[0] == "4"
    browser.delete_network_conditions()
    complaints_of(browser)  # which it has, of the answers that it did not get


@pytest.mark.parametrize("first", [1, 1002])
def test_the_first_leader_has_taken_nothing_over_even_after_a_reset(browser: Chrome, first: int) -> None:
    told = Told(time())
    second, third = first + 1, first + 2
    told.read(replace(a_version(4), term=second, terms=(Rank(first, 0), Rank(second, 3))))
    told.tell(TookOver(third, 4), name="third")
    marked = """
    const done = arguments[0];
    Promise.all([import("/quality.js"), fetch("/api/state").then((answer) => answer.json())])
      .then(([quality, picture]) => done(quality.takeoversOf(picture).map((one) => one.term)));
    """

    with shown_in(browser, told):
        wait_until(lambda: len(texts_of(browser, "#terms td:first-child")) == 3, "all terms")

        assert browser.execute_async_script(marked) == [second, third]


def await_evaluation(browser: Chrome, version: int) -> None:
    """Wait until the table of evaluations has a version."""
    wait_until(lambda: texts_of(browser, "#evaluations td")[0] == str(version), f"version {version}")


def value_of(browser: Chrome, section: str) -> str:
    """Return what the first curve of a section says of its value, empty while there is none."""
    return next(iter(texts_of(browser, f"#{section} .value")), "")


def test_the_sites_are_shown_worst_first_once_one_has_reported(browser: Chrome) -> None:
    told = Told(time())
    told.read(a_version(1))

    def site(accuracy: float) -> SiteReport:
        metrics = (SiteMetric("accuracy", "mean", 10 * accuracy, 10), SiteMetric("auc", "site_mean", 5.0, 10))
        return SiteReport(1, 1, 10, metrics, gains_version=1, gains=(Gain("accuracy", accuracy, 1.0),))

    with shown_in(browser, told):
        assert not browser.find_element(By.ID, "sites").is_displayed()
        sites = {"<b>good</b>": site(0.75), "bad": site(0.5), "broken": site(math.nan)}
        told.read(replace(a_version(2), sites=sites))
        wait_until(lambda: len(table_of(browser, "sites-rows")) == 3, "three sites")
        rows, heads = table_of(browser, "sites-rows"), texts_of(browser, "#sites-head th")
        over = table_of(browser, "over-sites")

        assert browser.find_element(By.ID, "sites").is_displayed()
        assert heads[-3:] == ["accuracy", "auc", "accuracy before and after its own round"]
        assert [row[0] for row in rows] == ["broken", "bad", "<b>good</b>"]
        assert rows[1] == ["bad", "1", "1", "10", "0.5", "0.5", "0.5 → 1"]
        assert over[0] == ["accuracy", "0.625", "0.5 (bad)", "0.75 (<b>good</b>)", "0.125", "2", "broken"]
        assert over[1][:2] == ["auc (mean of the sites)", "0.5"]


def table_of(browser: Chrome, identity: str) -> list[list[str]]:
    """Return the texts of a table's rows."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map("
        "(row) => [...row.children].map((cell) => cell.textContent))"
    )
    found: list[list[str]] = browser.execute_script(script, f"#{identity} tr")
    return found
