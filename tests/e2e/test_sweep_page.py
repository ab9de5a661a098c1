"""What a browser shows of a sweep's picture: the file is opened from disk, and no server answers."""

from pathlib import Path

from browser import a_browser, complaints_of, text_of, texts_of
from selenium.webdriver.common.by import By

from fluffle.settings import load_arguments
from fluffle_cli.simulate.program import run
from fluffle_cli.simulate.settings import SimulateSettings


def test_a_sweep_shows_a_strip_with_a_dot_for_each_seed_and_a_curve_for_each_combination(
    tmp_path: Path,
) -> None:
    given = {
        "task": "numpy_task:task",
        "clients": 3,
        "max_seconds": 6,
        "target": "0.8",
        "sweep": "learning_rate=0.1,0.0001",
        "seeds": 3,
        "recommend": True,
        "out": tmp_path / "sweep",
    }
    run(load_arguments(SimulateSettings, given))

    with a_browser(tmp_path / "profile") as browser:
        browser.get((tmp_path / "sweep" / "sweep.html").as_uri())

        assert complaints_of(browser) == []
        assert browser.title == text_of(browser, "title") == "numpy_task:task: 2 combinations, 3 seeds each"
        said = texts_of(browser, "#results p")
        assert said[0].startswith("The best is learning_rate=0.1: accuracy>=0.8 held from ")
        assert texts_of(browser, "#results tbody td:first-child") == [
            "learning_rate=0.1",
            "learning_rate=0.0001",
        ]
        assert said[1].startswith("The next is learning_rate=0.0001, which takes at least ")
        # Of the two strips, that of the seconds has the runs that never held the target.
        assert len(browser.find_elements(By.CSS_SELECTOR, "circle.dot")) == 9
        assert len(browser.find_elements(By.CSS_SELECTOR, "circle.never")) == 3
        never = [f"seed {seed}: not within 6 s" for seed in range(3)]
        assert texts_of(browser, "circle.never title") == never
        curves = texts_of(browser, "#curves .value")
        assert [each.partition(",")[0] for each in curves[:2]] == [
            "learning_rate=0.1",
            "learning_rate=0.0001",
        ]
        assert curves[2] == "target: 0.8"
        settings = texts_of(browser, "section:last-of-type td")
        assert settings[settings.index("seeds") + 1] == "0 to 2"
