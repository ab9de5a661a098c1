"""How still the default strategy stands at its plateau, with and without the average of its versions.

    python -m benchmarks.averaged

The demo's scene of `algorithms.py` with the tuned settings of `reuse`, trained on after the target is held.
`last_20` is how far the last 20 evaluations lie apart with each seed, and `below_central` how many points the
last one is below training in one place that goes on as long.
"""

from benchmarks.algorithms import SCENES, play_simulations
from benchmarks.contenders import read_label
from benchmarks.measuring import Cell, OtherWork, Report, Spread, seconds_in_words, wide_console
from benchmarks.race import tuned

SCENE = "demo"
DECAYS = (0.0, 0.5, 0.8)
SEEDS = range(5)


def main() -> None:
    """Play, write and print."""
    scene, others = SCENES[SCENE], OtherWork()
    reuse = read_label(next(label for label in tuned(SCENE) if label.startswith("reuse")))
    # With the plan's learning rate, neither half nor twice of it.
    central = scene.central()[1]
    settings = [central, *({**reuse, "average_versions": decay} for decay in DECAYS)]
    best, *played = play_simulations(
        [[scene.settings(each, seed, is_plateau=True) for seed in SEEDS] for each in settings], SCENE
    )
    held = play_simulations([[scene.settings(each, seed) for seed in SEEDS] for each in settings[1:]], SCENE)
    report = Report("averaged", "the default at its plateau, and the average of its versions (virtual)")
    for decay, mine, until_held in zip(DECAYS, played, held, strict=True):
        below = [100 * (one.result.final - two.result.final) for one, two in zip(best, mine, strict=True)]
        row: dict[str, Cell | Spread] = {
            "average_versions": decay,
            "held_s": seconds_in_words([one.result.target_s for one in until_held]),
            "last_20": [round(100 * one.spread, 2) for one in mine],
            "below_central": Spread(tuple(below)),
        }
        report.add(row, others=others.share)
    report.show(wide_console())


if __name__ == "__main__":
    main()
