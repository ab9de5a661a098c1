"""What differential privacy costs in accuracy: Fashion-MNIST at 1,000 simulated sites.

    python -m benchmarks.private_accuracy

Each site has 60 pictures, and sends 8 updates. As with `fluffle simulate`, the deployed leader clips, adds up
and adds noise, and the devices keep to their turns. To reach, with epsilon 8 and delta 1e-5: with correlated
noise at most 4 points below the same federation without privacy, and above plain noise. The clip of each
side, and the server's learning rate without privacy, are those that did best with another seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.played import play_sections
from benchmarks.sections import Demand, Section, grid, last, points, staleness

SITES: Final = 1000
BUFFER_SIZE: Final = 50
UPDATES: Final = 8
SCENE: Final[Mapping[str, Any]] = {
    "task": "benchmarks.private_tasks:clothes",
    "clients": SITES,
    "split": "iid",
    # A device is on for a twentieth of the time, so that a few more than a buffer has train at a time.
    "availability": "on-off:2:38",
    "device_seconds": "constant:1",
    "strategy": "fedbuff",
    "buffer_size": BUFFER_SIZE,
    "staleness": "constant",
    "weigh_by": "none",
    "local_epochs": 8,
    "batch_size": 30,
    "learning_rate": 0.15,
    "average_versions": 0.9,
    "evaluate_every": 4,
    "max_updates": SITES * UPDATES,
}


def private(epsilon: float, noise: str, clips: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the settings of a side with differential privacy, with each of these clips."""
    return grid(
        "dp_clip",
        clips,
        dp="central",
        dp_epsilon=epsilon,
        dp_max_updates=UPDATES,
        dp_separation=SITES // BUFFER_SIZE,
        dp_noise=noise,
    )


ACCURACY: Final = Section(
    "Accuracy at 1,000 sites of 60 pictures, 8 updates of each",
    SCENE,
    {
        "no privacy": grid("server_learning_rate", (1.0, 2.0, 4.0)),
        "correlated, epsilon 8": private(8.0, "correlated", ("0.4", "0.8", "1.2")),
        "plain, epsilon 8": private(8.0, "plain", ("0.2", "0.4")),
        "correlated, epsilon 2": private(2.0, "correlated", ("0.3",)),
        "plain, epsilon 2": private(2.0, "plain", ("0.15",)),
    },
    {"accuracy": last, "mean staleness": staleness},
    [
        Demand(
            "points of correlated noise below no privacy, epsilon 8",
            points(last, "no privacy", "correlated, epsilon 8"),
            "at most",
            4.0,
        ),
        Demand(
            "points of correlated noise above plain noise, epsilon 8",
            points(last, "correlated, epsilon 8", "plain, epsilon 8"),
            "at least",
            1.0,
        ),
        Demand(
            "points of correlated noise above plain noise, epsilon 2",
            points(last, "correlated, epsilon 2", "plain, epsilon 2"),
            "at least",
            1.0,
        ),
    ],
    better=lambda one: -one.values[-1],
    against="no privacy",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, write the tables, print them, and end with 1 when something is not reached."""
    about = "Measure what differential privacy costs in accuracy."
    play_sections("privacy", {"accuracy": ACCURACY}, about=about, arguments=arguments)


if __name__ == "__main__":
    main()
