"""A run with several seeds: what each strategy gave over all of them, and what is said of a miss."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_version, an_evaluation

from fluffle_aggregator.goal import parse_target
from fluffle_cli.over_seeds import Speedup
from fluffle_cli.report.comparison import name_of, results, seeds_table, verdict
from fluffle_cli.report.page import data_of
from fluffle_cli.report.run import (
    METRICS,
    SUMMARY,
    About,
    AboutFederation,
    FederationRun,
    Run,
    append_lines,
    read_run,
    write_summary,
)
from fluffle_cli.watching.view import Version

GOAL = parse_target("accuracy>=0.9")
LENGTH = 12
MEDIAN = "times as fast as synchronous fedavg in the median of 3 seeds"


def good_from(second: int | None) -> list[float]:
    """Return an accuracy for each second: bad, and from this second on good."""
    return [0.95 if second is not None and now >= second else 0.5 for now in range(LENGTH)]


def a_federation(
    strategy: str, seed: int, accuracies: Sequence[float], *, held_seconds: float | None = 3.0
) -> FederationRun:
    versions = [
        Version.of(
            replace(
                a_version(number),
                committed_at=100.0 + number,
                evaluation=an_evaluation(number - 1, {"accuracy": accuracies[number - 1]})
                if number
                else None,
            )
        )
        for number in range(len(accuracies) + 1)
    ]
    about = AboutFederation(
        strategy=strategy, folder=f"seed-{seed}/{strategy}", seed=seed, held_seconds=held_seconds
    )
    return FederationRun(about=about, versions=versions)


def a_comparison(folder: Path, seconds: Mapping[int, tuple[int | None, int | None]]) -> Run:
    """Return a run in which FedAvg and FedBuff hold their target from these seconds on, seed by seed."""
    federations = [
        a_federation(strategy, seed, good_from(second))
        for seed, pair in seconds.items()
        for strategy, second in zip(("fedavg", "fedbuff"), pair, strict=True)
    ]
    about = About(task="digits", seed=0, target=str(GOAL), runs=[each.about for each in federations])
    return Run(folder=folder, about=about, federations=federations)


def test_a_target_is_held_by_seconds_where_the_run_says_so() -> None:
    zigzag = [0.5, 0.95, 0.95, 0.5, 0.95, 0.95, 0.95, 0.5]

    by_seconds = a_federation("fedbuff", 0, zigzag)
    by_evaluations = a_federation("fedbuff", 0, zigzag, held_seconds=None)

    assert by_seconds.seconds_to(GOAL) == 4.0
    assert by_evaluations.seconds_to(GOAL) is None
    # Reached in the last moment, and not seen to hold for 3 s.
    late = good_from(LENGTH - 1)
    assert a_federation("fedbuff", 0, late).seconds_to(GOAL) is None
    assert a_federation("fedbuff", 0, late, held_seconds=None).seconds_to(GOAL) == LENGTH - 1


def test_the_results_of_a_strategy_are_medians_with_ranges(tmp_path: Path) -> None:
    run = a_comparison(tmp_path, {0: (8, 2), 1: (6, 2), 2: (None, 4)})

    found = {name: results(list(group.values()), "accuracy", GOAL) for name, group in run.groups.items()}

    assert found["fedavg"]["accuracy>=0.9 held from"] == "8.0 s (6.0 s to never)"
    assert found["fedbuff"]["accuracy>=0.9 held from"] == "2.0 s (2.0 s to 4.0 s)"
    assert found["fedavg"]["final accuracy"] == "0.9500 (0.5000 to 0.9500)"
    assert found["fedbuff"]["versions"] == "12"
    assert seeds_table(run) == (
        ["seed", "fedavg held from", "fedbuff held from", "times as fast"],
        [
            ["0", "8.0 s", "2.0 s", "4.0"],
            ["1", "6.0 s", "2.0 s", "3.0"],
            ["2", "not within 12 s", "4.0 s", "at least 3.0"],
        ],
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (
            {0: (8, 2), 1: (6, 3), 2: (6, 6)},
            f"fedbuff reaches accuracy>=0.9 2.0 {MEDIAN}, and 1.0 times in the worst",
        ),
        (
            {0: (None, 2), 1: (None, 3), 2: (6, 6)},
            f"fedbuff reaches accuracy>=0.9 at least 4.0 {MEDIAN}, and 1.0 times in the worst",
        ),
        (
            {0: (8, 2), 1: (8, 2), 2: (6, None)},
            f"fedbuff reaches accuracy>=0.9 4.0 {MEDIAN}, and it reaches it with 2 of them",
        ),
        ({0: (8, None), 1: (8, None), 2: (6, 2)}, "fedbuff does not reach accuracy>=0.9 with 2 of 3 seeds"),
        ({0: (4, 8)}, "synchronous fedavg reaches accuracy>=0.9 2.0 times as fast as fedbuff"),
        ({0: (8, None)}, "fedbuff does not reach accuracy>=0.9"),
    ],
)
def test_the_verdict_has_the_median_and_the_worst_seed(
    tmp_path: Path, seconds: Mapping[int, tuple[int | None, int | None]], said: str
) -> None:
    assert verdict(a_comparison(tmp_path, seconds)) == said


def test_a_seed_that_one_strategy_lacks_is_not_compared(tmp_path: Path) -> None:
    whole = a_comparison(tmp_path, {0: (8, 2), 1: (6, 2)})
    run = replace(whole, federations=whole.federations[:-1])

    assert run.speedups == {0: Speedup(4.0)}
    assert [name_of(each, run) for each in run.federations][-1] == "fedavg, seed 1"
    assert seeds_table(run)[1] == [["0", "8.0 s", "2.0 s", "4.0"], ["1", "6.0 s", "", ""]]


def test_the_page_of_several_seeds_is_made_from_the_files_and_has_a_band_for_each_strategy(
    tmp_path: Path,
) -> None:
    run = a_comparison(tmp_path, {0: (8, 2), 1: (6, 3)})
    for each in run.federations:
        place = tmp_path / each.about.folder
        place.mkdir(parents=True)
        append_lines(place / METRICS, each.versions)
    write_summary(run)

    data: dict[str, Any] = data_of(read_run(tmp_path), [])

    curves = {one["name"]: one for one in data["compared"]["curves"]}
    assert list(curves) == ["fedavg, median of 2 seeds", "fedbuff, median of 2 seeds"]
    assert curves["fedavg, median of 2 seeds"]["reached"] == 7.0
    points = {point[0]: point[1:] for point in curves["fedbuff, median of 2 seeds"]["points"]}
    assert points[2.0] == (pytest.approx(0.725), 0.5, 0.95)
    assert points[3.0] == (0.95, 0.95, 0.95)
    assert [row[0] for row in data["results"][1]] == ["fedavg", "fedbuff"]
    assert [each["name"] for each in data["federations"]] == [
        *("fedavg, seed 0", "fedbuff, seed 0", "fedavg, seed 1", "fedbuff, seed 1")
    ]
    said = json.loads((tmp_path / SUMMARY).read_text())
    assert said["ratio"] == 3.0
    assert [each["seconds_to_target"] for each in said["runs"]] == [8.0, 2.0, 6.0, 3.0]
