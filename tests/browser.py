"""A real Chromium without a screen, for tests of what people see; Debian's, as `make test` installs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
