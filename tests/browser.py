"""A real Chromium without a screen, for tests of what people see; Debian's, as `make test` installs it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service


@contextmanager
def a_browser(profile: Path, *, width: int = 1200, height: int = 1800) -> Iterator[Chrome]:
    """Start a Chromium with a profile of its own; where there is none the test fails, and never skips."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "there is no chromium: run scripts/setup.sh browser"
    assert driver, "there is no chromedriver: run scripts/setup.sh browser"
    options = ChromeOptions()
    options.binary_location = chromium
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--no-first-run"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # which root cannot have
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def complaints_of(browser: Chrome) -> list[str]:
    """Return what the browser has to say of the page: errors of scripts, and what the policy forbade."""
    entries: list[dict[str, object]] = browser.execute("getLog", {"type": "browser"})["value"]
    return [str(entry["message"]) for entry in entries if entry["level"] == "SEVERE"]


def text_of(page: Chrome, identity: str) -> str:
    """Return the text of an element."""
    return str(page.execute_script("return document.getElementById(arguments[0]).textContent", identity))


def texts_of(page: Chrome, selector: str) -> list[str]:
    """Return the texts of all elements that a selector finds."""
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
    return [str(each) for each in page.execute_script(script, selector)]


def shown(page: Chrome) -> dict[str, float]:
    """Return the numbers under "Now", folded away or not, as the page was given them."""
    script = (
        "return Object.fromEntries([...document.querySelectorAll('#now dd, #more dd')].map("
        "(each) => [each.dataset.key, JSON.parse(each.dataset.value)]))"
    )
    return dict(page.execute_script(script))


def rows_of(page: Chrome) -> list[dict[str, Any]]:
    """Return the rows of the table of workers, as the page was given them, if their names stand in them."""
    script = (
        "return [...document.querySelectorAll('#workers-rows tr')].map((each) => "
        "({...JSON.parse(each.dataset.row), name: each.firstElementChild.textContent}))"
    )
    return list(page.execute_script(script))
