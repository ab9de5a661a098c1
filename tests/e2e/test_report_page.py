"""What a browser shows of a report: the file is opened from disk, and no server answers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import a_browser, complaints_of, rows_of, text_of, texts_of
from run_folders import BEGAN_AT, HOSTILE, STORY, a_line, a_run
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from fluffle_cli.report.command import write_report
from fluffle_cli.report.run import METRICS, SUMMARY, append_lines, read_run

SETTINGS = {"buffer-size": "8"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with a_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def show(browser: Chrome, folder: Path, *others: Path) -> None:
    """Open the report of a run; the browser must have nothing to complain of."""
    path = write_report(read_run(folder), [read_run(other) for other in others])
    browser.get(path.as_uri())
    assert complaints_of(browser) == []


def test_a_report_shows_the_results_and_all_that_the_live_page_shows(browser: Chrome, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", happened=STORY, settings=SETTINGS, versions={"fluffle": "0.1.0"})
    line = replace(a_line(6, 0.9, ["site-1"], 2), finished="accuracy>=0.8 held for 3 evaluations")
    append_lines(folder / METRICS, [line])

    show(browser, folder)

    assert browser.title == text_of(browser, "federation") == "digits: fedbuff"
    assert text_of(browser, "condition") == "finished: accuracy>=0.8 held for 3 evaluations"
    assert "accuracy of version 3, the best (highest)" in texts_of(browser, "#now dt")
    assert texts_of(browser, "#results .value") == ["fedbuff: 0.9 (10 s)", "target: 0.8"]
    assert texts_of(browser, "#results td")[:2] == ["fedbuff", "0.9000"]
    assert texts_of(browser, "#quality .value") == ["0.9 (version 5, after 10 s)"]
    assert texts_of(browser, "#activity .value")[0].startswith("applied: ")
    assert texts_of(browser, "#staleness th") == ["0", "1"]
    assert texts_of(browser, "#terms td:nth-child(2)") == ["aggregator-2", "aggregator-1"]
    assert len(browser.find_elements(By.TAG_NAME, "canvas")) == 4
    said = texts_of(browser, "section td")
    for each in ("began to lead", "was ended by signal 9", "+3.0 s", "buffer-size", "8", "fluffle", "0.1.0"):
        assert each in said


def test_the_runs_of_a_comparison_have_a_curve_each(browser: Chrome, tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "one"), a_run(tmp_path / "two")

    show(browser, first, second)

    assert texts_of(browser, "#results .value") == [
        "fedbuff in one: 1 (8.0 s)",
        "fedbuff in two: 1 (8.0 s)",
        "target: 0.8",
    ]
    assert texts_of(browser, "#results tbody td:first-child") == ["one", "two"]


def test_of_a_run_with_two_federations_one_is_shown_at_a_time(browser: Chrome, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    (folder / "fedavg").mkdir()
    append_lines(folder / "fedavg" / METRICS, [a_line(number, 0.1, ["slow"]) for number in range(3)])
    summary = json.loads((folder / SUMMARY).read_text())
    summary["runs"].insert(0, {"strategy": "fedavg", "folder": "fedavg"})
    (folder / SUMMARY).write_text(json.dumps(summary))

    show(browser, folder)
    shown = [row["name"] for row in rows_of(browser)]
    browser.find_element(By.XPATH, "//button[text()='fedavg']").click()

    assert shown == ["site-1", "site-2"]
    assert [row["name"] for row in rows_of(browser)] == ["slow"]
    assert texts_of(browser, "#quality .value") == ["0.1 (version 1, after 2.0 s)"]
    assert text_of(browser, "condition") == "not finished when this report was made"


def test_several_seeds_have_one_curve_with_a_band_and_a_row_each(browser: Chrome, tmp_path: Path) -> None:
    folder, places = tmp_path / "run", [f"seed-{seed}" for seed in range(3)]
    a_run(folder)
    summary = json.loads((folder / SUMMARY).read_text())
    summary["runs"] = [
        {"strategy": strategy, "folder": f"{place}/{strategy}", "seed": seed}
        for seed, place in enumerate(places)
        for strategy in ("fedavg", "fedbuff")
    ]
    (folder / SUMMARY).write_text(json.dumps(summary))
    for each in summary["runs"]:
        (folder / each["folder"]).mkdir(parents=True)
        worse = 0.1 * each["seed"] if each["strategy"] == "fedbuff" else 0.0
        lines = [a_line(number, max(0.0, 0.2 * number - worse), ["site-1"]) for number in range(6)]
        append_lines(folder / each["folder"] / METRICS, lines)

    show(browser, folder)

    values = texts_of(browser, "#results .value")
    assert values[:2] == ["fedavg, median of 3 seeds: 1 (8.0 s)", "fedbuff, median of 3 seeds: 0.9 (8.0 s)"]
    assert texts_of(browser, "#results p")[1].startswith("The bands go from the least to the largest value")
    rows = texts_of(browser, "[aria-label='Seed by seed'] tbody tr")
    assert rows == ["06.0 s6.0 s1.0", "16.0 s8.0 s0.8", "26.0 s8.0 s0.8"]
    assert texts_of(browser, "#results + .choice button")[-1] == "fedbuff, seed 2"
    assert has_a_band(browser)


def has_a_band(browser: Chrome) -> bool:
    """Tell whether the first chart has pixels as faint as those of a band."""
    script = (
        "const drawn = document.querySelector('#results canvas');"
        "const { data } = drawn.getContext('2d').getImageData(0, 0, drawn.width, drawn.height);"
        "return data.some((value, place) => place % 4 === 3 && value === 0x22)"
    )
    return bool(browser.execute_script(script))


def test_a_name_that_is_a_script_is_shown_letter_by_letter(browser: Chrome, tmp_path: Path) -> None:
    story = [replace(each, name=HOSTILE, detail=HOSTILE) for each in STORY]
    folder = a_run(tmp_path / "run", workers=[HOSTILE], happened=story, settings={HOSTILE: HOSTILE})

    show(browser, folder)

    assert [row["name"] for row in rows_of(browser)] == [HOSTILE]
    assert texts_of(browser, "#rejections li")[0].endswith(f"too-stale from {HOSTILE}: {HOSTILE}")
    assert browser.find_elements(By.CSS_SELECTOR, "main script") == []


def test_the_workers_of_a_report_are_sorted_and_searched(browser: Chrome, tmp_path: Path) -> None:
    show(browser, a_run(tmp_path / "run", workers=[f"site-{number:04}" for number in range(2000)]))

    found = [text_of(browser, "found"), text_of(browser, "page")]
    browser.find_element(By.CSS_SELECTOR, "[data-column=name] button").click()
    browser.find_element(By.CSS_SELECTOR, "[data-column=name] button").click()
    last = rows_of(browser)[0]["name"]
    browser.find_element(By.ID, "search").send_keys("SITE-19")
    browser.find_element(By.ID, "next").click()

    assert found == ["2,000 workers", "page 1 of 40"]
    assert last == "site-1999"
    assert text_of(browser, "found") == "100 of 2,000 workers"
    assert rows_of(browser)[0]["name"] == "site-1949"


def test_refusals_are_counted_once_and_a_reason_that_is_missing_is_said(
    browser: Chrome, tmp_path: Path
) -> None:
    late = [replace(STORY[-1], at=BEGAN_AT + 20, reason="finished") for _ in range(3)]

    show(browser, a_run(tmp_path / "some", happened=[*STORY, *late]))
    some = [text_of(browser, name) for name in ("rejections-unheard", "after-the-end")]
    counted = texts_of(browser, "#reasons td")
    show(browser, a_run(tmp_path / "newer", happened=[STORY[-1]] * 7))

    assert some == [
        "4 more refused without a reason in the run's files.",
        "Came after the end, and not counted above: 3.",
    ]
    assert counted == ["too-stale", "1"]
    assert text_of(browser, "rejections-unheard") == (
        "The newest version does not count 2 of these: they came later."
    )
    assert texts_of(browser, "[aria-label='Refused messages by sender'] td") == ["site-3", "7"]
