"""What `make papers` and `benchmarks.uneven` play, and how they compare."""

import math
from statistics import median

import pytest

from benchmarks import paper_scenes, uneven
from benchmarks.played import Case, play
from benchmarks.sections import Outcome, held_updates, times

CASES = {
    f"{name}-{side}-{choice}": Case.of(section, side, choice, seed=0)
    for name, section in {**paper_scenes.SECTIONS, **uneven.SECTIONS}.items()
    for side, choices in section.sides.items()
    for choice in range(len(choices))
}


def an_outcome(updates: float) -> Outcome:
    return Outcome(
        (0.5,), (1,), held_s=updates, held_updates=updates, end_s=1.0, staleness=0.0, most_staleness=0
    )


@pytest.mark.parametrize("name", CASES)
def test_each_setting_that_is_played_can_be_simulated(name: str) -> None:
    CASES[name].settings.check()


def test_sides_are_compared_seed_by_seed_and_of_two_that_never_arrive_none_is_sooner() -> None:
    found = {
        "slow": [an_outcome(30.0), an_outcome(math.inf), an_outcome(math.inf)],
        "fast": [an_outcome(10.0), an_outcome(math.inf), an_outcome(20.0)],
    }

    ratios = times(held_updates, "slow", "fast")(found)

    assert ratios.values == (3.0, 1.0, math.inf)
    assert median(ratios.values) == 3.0


def test_normalised_steps_end_nearer_to_the_optimum_of_the_quadratics() -> None:
    plain, normalised = (play(CASES[f"fednova-fedavg, {each}-0"]) for each in ("plain", "normalised"))

    assert normalised.values[-1] < 0.1 * plain.values[-1]
