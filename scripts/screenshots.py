"""Makes the pictures of README.md and docs/how-to/watch.md again, from real runs.

PYTHONPATH=tests:examples:. .venv/bin/python scripts/screenshots.py [RUN]

With the folder RUN of a `fluffle demo --compare` that has finished it makes the picture of that comparison,
and no other. Without, it runs `fluffle demo --compare` with five seeds, which takes a quarter of an hour.
Then it starts a private RabbitMQ with its UI and the federation `digits` on
examples/numpy_task.py, kills the leader once, looks at the UI, the live page, TensorBoard and a report with a
Chromium that has no screen (scripts/setup.sh browser), and ends all of it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep, time

from browser import a_browser
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from fluffle_cli.node import BrokerNode
from harness.federation import Federation, wait_until

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WAIT_S = 120.0
FLAGS = ("--buffer-size", "3", "--local-steps", "5")
# It asks so often.
SECONDS_OF_A_PAGE = 1.0


class Page:
    """RabbitMQ's UI, as the user of a private node sees it."""

    def __init__(self, browser: Chrome, node: BrokerNode) -> None:
        self._browser = browser
        self._start = node.management_url
        browser.get(self._start)
        self._wait_for("input[name=username]")
        for name, value in (("username", node.user), ("password", node.password)):
            browser.find_element(By.NAME, name).send_keys(value)
        browser.find_element(By.CSS_SELECTOR, "input[type=submit]").click()
        self._wait_for("#tabs")

    def take(self, name: str, place: str, *, shows: str, filtered: str = "", opened: str = "") -> None:
        """Save a page as a picture once it shows a text.

        Its list may be `filtered`, as a person would type it, or a heading `opened` by a click.
        """
        self._browser.get(f"{self._start}#/{place}")
        if filtered:
            self._wait_for(f"#{place}-name")
            self._browser.find_element(By.ID, f"{place}-name").send_keys(filtered, Keys.ENTER)
        if opened:
            wait_until(lambda: opened in self._text(), f"{opened} on {place}", deadline_s=WAIT_S)
            [heading] = [
                each
                for each in self._browser.find_elements(By.TAG_NAME, "h2")
                if each.text.startswith(opened)
            ]
            heading.click()
            self._browser.execute_script("arguments[0].scrollIntoView()", heading)
        wait_until(lambda: shows in self._text(), f"{shows} on {place}", deadline_s=WAIT_S)
        self._browser.save_screenshot(str(IMAGES / f"rabbitmq-{name}.png"))

    def _text(self) -> str:
        return self._browser.find_element(By.TAG_NAME, "body").text

    def _wait_for(self, selector: str) -> None:
        wait_until(
            lambda: bool(self._browser.find_elements(By.CSS_SELECTOR, selector)), selector, deadline_s=WAIT_S
        )


@contextmanager
def a_federation(node: BrokerNode, folder: Path) -> Iterator[Federation]:
    """Run the federation `digits`, and give it when each of its parts is at work."""
    with Federation("digits", node.amqp_url, folder, task="numpy_task:task") as running:
        running.aggregator("first", *FLAGS).wait_for("leading")
        flags = ["--dashboard-port", "0", "--management-url", node.management_url or ""]
        running.start("dashboard", "fluffle_cli.main", "dashboard", *flags)
        running.aggregator("standby", *FLAGS)
        running.evaluator("--tensorboard", "curves")
        workers = [running.worker(site, "--delay", str(1 + site)) for site in range(4)]
        for worker in workers:
            worker.wait_for("update published", 2)
        # By now the page listens.
        with running.connect() as broker:
            broker.publish_as("stranger", running.topology.updates_in.name, "", b"rubbish", {})
        yield running


def take_live_page(browser: Chrome, running: Federation) -> None:
    """Save the live page, after a takeover, as a wide screen in the light and a phone in the dark show it."""
    browser.get(address_in(running, "dashboard"))
    [leader] = [part for part in running.parts if part.name == "first"]
    leader.kill()
    running.aggregator("first", *FLAGS)

    def has_seen_much() -> bool:
        text = browser.find_element(By.TAG_NAME, "body").text
        table = browser.execute_script("return document.querySelectorAll('#staleness tr').length")
        return "Standing by: first" in text and int(table) >= 3

    wait_until(has_seen_much, "a page with something on it", deadline_s=WAIT_S)
    on_a_screen(browser, width=1180, height=1900)
    save(browser, "live-page")
    on_a_screen(browser, width=390, height=1500, scheme="dark")
    save(browser, "live-page-phone")


def take_tensorboard(browser: Chrome, running: Federation) -> None:
    """Save what TensorBoard makes of the evaluator's files."""
    running.start("tensorboard", "tensorboard.main", "--logdir", ".", "--host", "127.0.0.1", "--port", "0")
    on_a_screen(browser, width=1180, height=1000)
    browser.get(address_in(running, "tensorboard"))

    def has_drawn() -> bool:
        # The head of the table below a curve.
        return "Smoothed" in browser.find_element(By.TAG_NAME, "body").text

    wait_until(has_drawn, "TensorBoard's curves", deadline_s=WAIT_S)
    save(browser, "tensorboard")


def take_report(browser: Chrome, running: Federation) -> None:
    """Save the page of the run so far."""
    report = running.start("report", "fluffle_cli.main", "report", "so-far", "--from-broker")
    if report.wait_for_exit():
        raise RuntimeError(report.log.read_text())
    on_a_screen(browser, width=1180, height=1500)
    browser.get((running.folder / "so-far" / "report.html").as_uri())
    save(browser, "report")


def run_comparison(run: Path) -> None:
    """Run a demo that compares two strategies; nothing else runs beside it."""
    flags = ("--compare", "--out", str(run))
    demo = subprocess.run([sys.executable, "-m", "fluffle_cli.main", "demo", *flags], check=False)
    # 1 means that a seed has missed its target: the picture shows that, too.
    if demo.returncode not in (0, 1):
        raise RuntimeError(f"the demo ended with exit code {demo.returncode}")


def take_comparison(run: Path) -> None:
    """Save the results of a demo that compares two strategies."""
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-profile-") as profile,
        a_browser(Path(profile)) as browser,
    ):
        on_a_screen(browser, width=1000, height=1500)
        browser.get((run.resolve() / "report.html").as_uri())
        sleep(SECONDS_OF_A_PAGE)
        browser.find_element(By.ID, "results").screenshot(str(IMAGES / "compare.png"))


def address_in(running: Federation, name: str) -> str:
    """Return the address that a part has printed."""
    [part] = [part for part in running.parts if part.name == name]
    wait_until(lambda: "http://" in part.log.read_text(), f"the address of {name}", deadline_s=WAIT_S)
    return next(word for word in part.log.read_text().split() if word.startswith("http://"))


def on_a_screen(browser: Chrome, *, width: int, height: int, scheme: str = "light") -> None:
    """Let the browser be so large, and in the light or in the dark."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < height / 2}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def save(browser: Chrome, name: str) -> None:
    """Save what the browser shows when it has had time to draw."""
    sleep(3 * SECONDS_OF_A_PAGE)
    browser.save_screenshot(str(IMAGES / f"{name}.png"))


def main() -> None:
    """Make every picture, or that of the comparison which is given."""
    if len(sys.argv) > 1:
        take_comparison(Path(sys.argv[1]))
        return
    began = time()
    with tempfile.TemporaryDirectory(prefix="fluffle-comparison-") as name:
        run_comparison(Path(name) / "run")
        take_comparison(Path(name) / "run")
    with (
        tempfile.TemporaryDirectory(prefix="fluffle-screenshots-") as name,
        BrokerNode.start(Path(name) / "node", management=True) as node,
        a_federation(node, Path(name)) as running,
        a_browser(Path(name) / "profile", width=1180, height=760) as browser,
    ):
        page = Page(browser, node)
        page.take("connections", "connections", shows="digits/worker/site-3")
        page.take("queues", "queues", shows="digits.rejected", filtered="digits")
        page.take("consumers", "queues/%2F/digits.updates", shows="digits/aggregator", opened="Consumers (")
        take_live_page(browser, running)
        take_tensorboard(browser, running)
        take_report(browser, running)
    made = [path for path in IMAGES.glob("*.png") if path.stat().st_mtime > began]
    sys.stdout.write("".join(f"{path}\n" for path in sorted(made)))


if __name__ == "__main__":
    main()
