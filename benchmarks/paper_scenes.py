"""What `make papers` plays: for each paper its scene, the sides, and what is to be reached."""

from collections.abc import Mapping
from typing import Final

from benchmarks.sections import (
    Demand,
    Section,
    distance,
    end_s,
    grid,
    held_s,
    held_updates,
    last,
    level,
    most_staleness,
    points,
    staleness,
    swing,
    times,
)

CLOTHES: Final = {"task": "benchmarks.paper_tasks:clothes"}
# As in the papers; fedavg knows nothing else than weights by examples.
ALIKE: Final = {"weigh_by": "none"}
DISCOUNTS: Final = {"constant": "constant", "polynomial": "polynomial:0.5", "hinge": "hinge:10:4"}

FEDASYNC = Section(
    "FedAsync: staleness and the mixing weight",
    {
        **CLOTHES,
        "clients": 9,
        "split": "dirichlet:0.5",
        "device_seconds": "exponential:1",
        "redraw": True,
        "strategy": "fedasync",
        "mixing": 0.9,
        "local_steps": 10,
        "max_updates": 400,
        "evaluate_every": 5,
    },
    {
        f"{name}, staleness up to {most}": [{"staleness": discount, "max_staleness": most, **ALIKE}]
        for most in (4, 16)
        for name, discount in DISCOUNTS.items()
    },
    {"accuracy": level, "swing": swing, "mean staleness": staleness},
    [
        *(
            Demand(
                f"swing with the constant weight to that with the {name} one, staleness up to 16",
                times(swing, "constant, staleness up to 16", f"{name}, staleness up to 16"),
                "at least",
                2.0,
            )
            for name in ("polynomial", "hinge")
        ),
        *(
            Demand(
                f"points of the {name} weight above the constant one, staleness up to 16",
                points(level, f"{name}, staleness up to 16", "constant, staleness up to 16"),
                "at least",
                1.0,
            )
            for name in ("polynomial", "hinge")
        ),
    ],
)

FEDBUFF = Section(
    "FedBuff: updates until the target",
    {
        **CLOTHES,
        "clients": 1000,
        "split": "iid",
        "device_seconds": "half-normal",
        "redraw": True,
        "target": "0.7",
        "held_seconds": 0.5,
    },
    {
        "fedavg": grid("server_learning_rate", [2.0, 4.0, 8.0], strategy="fedavg", max_updates=40_000),
        "fedbuff": grid(
            "server_learning_rate",
            [2.0, 4.0, 8.0],
            strategy="fedbuff",
            buffer_size=10,
            max_updates=8_000,
            evaluate_every=10,
            **ALIKE,
        ),
    },
    {"updates": held_updates, "seconds": held_s, "mean staleness": staleness},
    [
        Demand(
            "FedAvg's updates to those of FedBuff", times(held_updates, "fedavg", "fedbuff"), "at least", 3.0
        )
    ],
    better=held_updates,
)

NVFLARE = Section(
    "NVFlare edge: three tiers of devices",
    {
        **CLOTHES,
        "clients": 16,
        "split": "iid",
        "device_seconds": "tiers:105:205:405",
        # Longer than the slowest device lets the others wait.
        "buffer_timeout": 900,
        "local_epochs": 1,
        "max_updates": 160,
    },
    {
        "synchronous": [{"strategy": "fedavg"}],
        "asynchronous": [
            {
                "strategy": "fedbuff",
                "buffer_size": 1,
                "staleness": "constant",
                "server_learning_rate": 0.05,
                **ALIKE,
            }
        ],
    },
    {"seconds": end_s, "accuracy": last, "mean staleness": staleness},
    [
        Demand(
            "time of 160 updates, synchronous to asynchronous",
            times(end_s, "synchronous", "asynchronous"),
            "at least",
            1.82,
        ),
        Demand(
            "points by which the synchronous one ends above",
            points(last, "synchronous", "asynchronous"),
            "at most",
            1.0,
        ),
    ],
)

# What FADAS and CA2FL are compared with.
FEDBUFF_OF_FIVE = grid(
    "server_learning_rate",
    [0.3, 1.0, 3.0],
    strategy="fedbuff",
    buffer_size=5,
    staleness="constant",
    **ALIKE,
)

FADAS = Section(
    "FADAS: large delays",
    {
        **CLOTHES,
        "clients": 24,
        "split": "dirichlet:0.3",
        "device_seconds": "tiers:1.5:4:65",
        "local_epochs": 1,
        "max_updates": 2000,
        "evaluate_every": 4,
    },
    {
        "fedbuff": FEDBUFF_OF_FIVE,
        "fadas": grid(
            "server_learning_rate",
            [0.0003, 0.001, 0.003],
            strategy="fadas",
            buffer_size=5,
            delay_threshold=1_000_000,
            **ALIKE,
        ),
        "fadas, delay-adaptive": grid(
            "server_learning_rate", [0.001, 0.003, 0.01], strategy="fadas", buffer_size=5, **ALIKE
        ),
    },
    {"accuracy": level, "swing": swing, "mean staleness": staleness, "most staleness": most_staleness},
    [
        Demand("points of FADAS above FedBuff", points(level, "fadas", "fedbuff"), "at least", 1.0),
        Demand(
            "points of the delay-adaptive rate above FedBuff",
            points(level, "fadas, delay-adaptive", "fedbuff"),
            "at least",
            1.0,
        ),
        Demand(
            "points of the delay-adaptive rate above FADAS without",
            points(level, "fadas, delay-adaptive", "fadas"),
            "at least",
            1.0,
        ),
    ],
)

CA2FL = Section(
    "CA2FL: data that differ from client to client",
    {
        **CLOTHES,
        "clients": 24,
        "split": "dirichlet:0.1",
        "device_seconds": "lognormal:1:1",
        "local_epochs": 1,
        "max_updates": 1500,
        "evaluate_every": 4,
    },
    {
        "fedbuff": FEDBUFF_OF_FIVE,
        "ca2fl": grid("server_learning_rate", [1.0, 2.0, 4.0], strategy="ca2fl", buffer_size=5, **ALIKE),
    },
    {"accuracy": level, "swing": swing, "mean staleness": staleness},
    [Demand("points of CA2FL above FedBuff", points(level, "ca2fl", "fedbuff"), "at least", 1.0)],
)

FEDNOVA = Section(
    "FedNova: numbers of local steps that differ",
    {
        "task": "benchmarks.paper_tasks:quadratics",
        "clients": 8,
        "device_seconds": "constant:1",
        "local_epochs": 1,
        "best": "rmse:min",
        "max_versions": 200,
    },
    {
        f"{strategy}, {name}": [{"strategy": strategy, "normalize_steps": normalizes, **others}]
        for strategy, others in (("fedavg", {}), ("fedbuff", {"buffer_size": 8, "staleness": "constant"}))
        for name, normalizes in (("plain", False), ("normalised", True))
    },
    {"distance": distance},
    [
        Demand(
            "distance from the optimum, FedAvg's to that with normalised steps",
            times(distance, "fedavg, plain", "fedavg, normalised"),
            "at least",
            10.0,
        )
    ],
)

SECTIONS: Final[Mapping[str, Section]] = {
    "fedasync": FEDASYNC,
    "fedbuff": FEDBUFF,
    "nvflare": NVFLARE,
    "fadas": FADAS,
    "ca2fl": CA2FL,
    "fednova": FEDNOVA,
}
