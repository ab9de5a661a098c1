"""The page of a run: all of it in one file, whatever its files say."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from builders import a_version, an_evaluation
from run_folders import BEGAN_AT, HOSTILE, REFUSED, STORY, a_federation, a_line, a_run

from fluffle.errors import ConfigError
from fluffle.events import Applied, Event, Happened, Joined, Left, Rejected, Report, TookOver
from fluffle.record import Contributor, Folded
from fluffle.update import UpdateId
from fluffle_cli.report.command import write_report
from fluffle_cli.report.page import data_of
from fluffle_cli.report.run import EVENTS, METRICS, append_lines, read_run
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.state import happenings_in
from fluffle_cli.watching.view import Happening, Version


class Tags(HTMLParser):
    """Collects the elements of a page, with what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.references += [value or "" for name, value in attrs if name in {"src", "href", "srcset"}]


def page_of(folder: Path, *others: Path) -> str:
    return write_report(read_run(folder), [read_run(other) for other in others]).read_text()


def shown(folder: Path, *others: Path) -> dict[str, Any]:
    """Return the data in a run's page."""
    data: dict[str, Any] = data_of(read_run(folder), [read_run(other) for other in others])
    return data


def test_a_report_is_written_where_there_is_no_tensorflow(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", happened=STORY)
    program = (
        "import runpy, sys\n"
        "sys.modules |= {name: None for name in ('tensorflow', 'keras', 'sklearn')}\n"
        "sys.argv = ['fluffle', 'report', sys.argv[1]]\n"
        "runpy.run_module('fluffle_cli', run_name='__main__')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, f"the report is {folder / 'report.html'}\n"), done.stderr


def test_the_page_needs_no_other_file_and_no_network_and_has_all_of_the_run(tmp_path: Path) -> None:
    folder = a_run(
        tmp_path / "run",
        happened=STORY,
        settings={"buffer-size": "8"},
        versions={"fluffle": "0.1.0", "broker": "RabbitMQ 4.0.5"},
    )

    text = page_of(folder)

    assert [each for each in Tags(text).references if not each.startswith("#")] == []
    assert "default-src 'none'" in text
    assert "unsafe" not in text
    assert "import " not in text.partition('type="module"')[2].partition("</script>")[0]
    for said in ("too-stale", "20 versions late", "was ended by signal 9", "leads as term 2", "+3.0 s"):
        assert said in text
    for said in ("buffer-size", "RabbitMQ 4.0.5", "accuracy>=0.8 held from", "site-1"):
        assert said in text
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.jsonl",
        "metrics.jsonl",
        "report.html",
        "summary.json",
    ]


def test_a_name_that_is_a_script_adds_no_element_to_the_page(tmp_path: Path) -> None:
    story = [replace(each, name=HOSTILE, detail=HOSTILE) for each in STORY]
    plain = a_run(tmp_path / "plain", workers=["site-1"], happened=STORY)
    folder = a_run(tmp_path / "run", workers=[HOSTILE, "site-1"], happened=story, settings={HOSTILE: HOSTILE})

    assert Tags(page_of(folder)).names == Tags(page_of(plain)).names


def test_runs_are_laid_over_one_another(tmp_path: Path) -> None:
    first, second, third = (a_run(tmp_path / name) for name in ("one", "two", "three"))

    data = shown(first, second, third)

    names = [curve["name"] for curve in data["compared"]["curves"]]
    assert names == ["fedbuff in one", "fedbuff in two", "fedbuff in three"]
    assert [row[0] for row in data["results"][1]] == ["one", "two", "three"]
    assert data["compared"]["curves"][0]["reached"] == 6.0
    assert data["compared"]["lines"] == [["target: 0.8", 0.8]]


def test_a_run_without_target_and_without_any_event_has_a_page_too(tmp_path: Path) -> None:
    data = shown(a_run(tmp_path / "run", target=""))

    assert not [head for head in data["results"][0] if head.endswith("held from")]
    assert data["compared"]["lines"] == []
    [federation] = data["federations"]
    assert (federation["state"]["reasons"], federation["state"]["rejected"]) == ({}, 5)


def test_the_page_says_which_version_is_best_what_is_wrong_and_counts_refusals_once(tmp_path: Path) -> None:
    late = [replace(STORY[-1], at=BEGAN_AT + 20, reason="finished") for _ in range(3)]

    [federation] = shown(a_run(tmp_path / "run", happened=[*STORY, *late], refused=REFUSED))["federations"]

    state = federation["state"]
    assert (state["best"]["version"], state["best"]["metrics"]) == (3, {"accuracy": 0.8})
    findings = [f"{found['says']}" for found in state["findings"]]
    assert "All 4 messages of site-9 were refused. The last reason is bad-layout: another model." in findings
    assert (state["reasons"], state["rejected"], state["after_the_end"]) == ({"too-stale": 1}, 5, 3)
    assert [each["reason"] for each in state["refusals"]] == ["too-stale"]
    assert federation["senders"] == [("site-3", 1)]


def test_a_loss_that_rises_for_long_is_said_and_not_only_drawn() -> None:
    lines = [
        replace(
            a_line(number, 0.5, ["site-1"]),
            evaluation=an_evaluation(
                number - 1, {"accuracy": 0.5 + 0.01 * number, "loss": 0.5 + 0.02 * max(0, number - 5)}
            ),
        )
        for number in range(1, 31)
    ]

    [found] = [each for each in findings_of(a_federation(*lines).view) if each.kind == "getting-worse"]

    assert found.says == "loss has risen from about 0.5000 to 0.9600 since version 0."


def test_a_worker_with_far_more_weight_than_examples_is_named() -> None:
    given = {"tiny": Contributor(90, 3, 0, 90.0), "large": Contributor(10, 1497, 0, 10.0)}
    line = replace(a_line(20, 0.5, ["site-1"]), updates=100, contributors=given)

    [found] = [each for each in findings_of(a_federation(line).view) if each.kind == "above-share"]

    assert found.says == "tiny has 90 % of the weight, but 0.2 % of the examples (3)."


def test_numbers_that_are_not_finite_are_kept_in_files_that_every_program_can_read(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    line = a_line(6, math.nan, ["site-1"])
    append_lines(folder / METRICS, [replace(line, folded=[replace(line.folded[0], loss=math.inf)])])

    text = (folder / METRICS).read_text().splitlines()[-1]
    found = read_run(folder).federations[0].last

    assert json.loads(text, parse_constant=pytest.fail)["evaluation"]["metrics"] == {"accuracy": "NaN"}
    assert found.evaluation is not None
    assert math.isnan(found.evaluation.metrics["accuracy"])
    assert found.folded[0].loss == math.inf


def test_the_seconds_begin_with_the_first_round() -> None:
    first = replace(a_version(0), committed_at=BEGAN_AT)
    waited = replace(a_version(1, term=2), committed_at=BEGAN_AT + 3000)
    folded = Folded(UpdateId("site-1", "r", 1), 0, 0, 1.0, BEGAN_AT + 3610, BEGAN_AT + 3611, None, 10.0)
    trained = replace(
        a_version(2, term=2),
        committed_at=BEGAN_AT + 3612,
        folded=(folded,),
        contributors={"site-1": Contributor(1, 10, 0, 1.0)},
    )
    later = replace(trained, version=9, committed_at=BEGAN_AT + 3700)

    whole = a_federation(*map(Version.of, (first, waited, trained, later)))
    cut = a_federation(*map(Version.of, (trained, later)))
    untrained = a_federation(Version.of(first))

    assert whole.began_at == BEGAN_AT + 3600
    assert [whole.seconds_of(each) for each in whole.versions] == [0.0, 0.0, 12.0, 100.0]
    assert (cut.began_at, cut.seconds) == (BEGAN_AT + 3612, 88.0)
    assert (untrained.began_at, untrained.seconds) == (BEGAN_AT, 0.0)


def test_a_term_of_a_run_has_its_leader_and_none_begins_after_the_end() -> None:
    lines = [a_line(number, 0.5, ["site-1"], 1 + number // 3) for number in range(6)]
    after = Happening(at=BEGAN_AT + 60, name="aggregator-3", what="tookover")

    terms = a_federation(*lines, happened=[*STORY, after]).view.terms

    assert [(each.term, each.leader, each.at) for each in terms] == [
        (1, "aggregator-1", BEGAN_AT),
        (2, "aggregator-2", BEGAN_AT + 6),
    ]


def test_the_page_of_a_run_of_very_many_workers_is_small(tmp_path: Path) -> None:
    text = page_of(a_run(tmp_path / "run", workers=[f"site-{number}" for number in range(2000)]))

    assert len(text) < 2_000_000


def test_a_folder_that_is_none_of_a_run_is_told_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no summary\.json.*--from-broker"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "no json"),
        ("summary.json", '{"task": 3}'),
        ("summary.json", '{"task": "digits", "runs": []}'),
        ("metrics.jsonl", '{"version": "long"}'),
        ("summary.json", ""),
        ("metrics.jsonl", ""),
        ("events.jsonl", "[1]"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = a_run(tmp_path / "run")
    (folder / name).write_text(content)

    with pytest.raises(ConfigError, match=name):
        read_run(folder)


def test_a_line_ends_with_a_newline_alone_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    said = {"at": BEGAN_AT, "name": "site-1", "what": "left", "detail": "one\u2028two\x85three"}
    line = json.dumps(said, ensure_ascii=False)
    (folder / EVENTS).write_bytes(f"{line}\r\n\n \n{line}\n".encode())

    happened = read_run(folder).federations[0].happened

    assert [each.detail for each in happened] == [said["detail"]] * 2


def test_why_a_line_cannot_be_read_is_said_without_a_link(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    (folder / EVENTS).write_text('{"at": "soon", "name": "site-1"}')

    with pytest.raises(ConfigError) as raised:
        read_run(folder)

    assert str(raised.value) == (
        f"{folder / EVENTS} cannot be read as a file of a run: at: Input should be a valid number, unable to "
        "parse string as a number; what: Field required"
    )


def test_a_run_is_read_from_its_own_folder_alone(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    said = json.loads((folder / "summary.json").read_text())
    said["runs"][0]["folder"] = "../other"
    (folder / "summary.json").write_text(json.dumps(said))

    with pytest.raises(ConfigError, match="outside its own"):
        read_run(folder)


def test_numbers_that_nobody_can_draw_are_one_sentence(tmp_path: Path) -> None:
    endless, huge = a_run(tmp_path / "endless"), a_run(tmp_path / "huge")
    line = a_line(9, float("nan"), ["site-1"])
    append_lines(endless / METRICS, [replace(line, committed_at=float("inf"))])
    append_lines(huge / METRICS, [replace(line, folded=[replace(line.folded[0], staleness=10**400)])])

    for folder in (endless, huge):
        with pytest.raises(ConfigError, match="nothing can be drawn"):
            page_of(folder)


def test_of_what_is_told_the_rare_things_are_written_down_and_read_in_their_order(tmp_path: Path) -> None:
    events: list[Event] = [
        Joined(),
        TookOver(2, 5),
        Applied(0, 1.0, 10, 100, 16),
        Rejected("w1/r1/2", "w1", "too-stale", "late"),
        Left("the federation has finished"),
    ]
    report = Report(
        "digits", "aggregator", "a1", tuple(Happened(9.0 - n, each) for n, each in enumerate(events))
    )
    folder = a_run(tmp_path / "run")

    append_lines(folder / EVENTS, happenings_in(report))

    found = read_run(folder).federations[0].happened
    assert [each.what for each in found] == ["left", "rejected", "tookover", "joined"]
    assert (found[1].name, found[1].reason, found[1].detail) == ("w1", "too-stale", "w1/r1/2: late")


def test_versions_are_read_back_the_same(tmp_path: Path) -> None:
    lines = [a_line(number, 0.2 * number, ("site-1", "site-2"), 1 + number // 3) for number in range(6)]

    [found] = read_run(a_run(tmp_path / "run")).federations

    assert [each.contributors for each in found.versions] == [each.contributors for each in lines]
    assert [each.evaluation for each in found.versions] == [each.evaluation for each in lines]
    assert [tuple(each.folded) for each in found.versions] == [each.folded for each in lines]
    assert [(each.rank, each.plan) for each in found.versions] == [(each.rank, each.plan) for each in lines]
