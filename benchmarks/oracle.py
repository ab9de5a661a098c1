"""Compare single steps of FedAsync and FedBuff with those of FLSim, the simulator of FedBuff's authors.

    make oracle

Random models and updates in float32, of random staleness, go through our strategies as an aggregator has
them, and through FLSim's own classes: its polynomial weight of the staleness, its reducer, its server step.
Each element of the new model may differ by a few roundings of float32.

FLSim departs from the papers in two points, which its settings can undo: it divides a weight by that of an
average staleness (here that of 0, which is 1), and it adds the updates of a buffer up, where FedBuff's
algorithm has 1/K of the sum (here FLSim's learning rate is divided by K).
"""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.measuring import Cell, OtherWork, Report, wide_console
from benchmarks.page import PAGES, fill
from benchmarks.peers import HERE, PEERS
from benchmarks.verdicts import Verdict, exit_code
from fluffle.compression import compress
from fluffle.model import Vector
from fluffle.settings import load_arguments
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_aggregator.strategies.strategy import UpdateFacts

SIZE: Final = 1000
SEEDS: Final = 20
# In roundings of float32, of the largest of the numbers that are added up.
ALLOWED: Final = 8.0
Case = Mapping[str, Any]


def a_case(strategy: str, seed: int) -> Case:
    """Draw a model and updates: one for FedAsync, a buffer of ten for FedBuff."""
    random = np.random.default_rng([seed, strategy == "fedbuff"])
    count = 10 if strategy == "fedbuff" else 1
    draw = random.standard_normal
    model = draw(SIZE, np.float32)
    delta = draw((count, SIZE), np.float32) * np.float32(0.1)
    base = model + draw((count, SIZE), np.float32) * np.float32(0.1)
    return {
        "model": model,
        "delta": delta,
        "final": base + delta,
        "staleness": random.integers(0, 50, count),
        "rate": np.float64(random.uniform(0.05, 1.0)),
        "exponent": np.float64(random.uniform(0.1, 1.0)),
    }


def ours(strategy: str, case: Case) -> Vector:
    """Return the model after our step."""
    exponent, rate = float(case["exponent"]), float(case["rate"])
    rates = {"mixing": rate} if strategy == "fedasync" else {"server_learning_rate": rate}
    settings = load_arguments(
        AggregatorSettings,
        {
            "federation": "oracle",
            "strategy": strategy,
            "staleness": f"polynomial:{exponent:.17g}",
            "weigh_by": "none",
            **({"buffer_size": len(case["delta"])} if strategy == "fedbuff" else {}),
            **rates,
        },
    )
    made = settings.make_strategy()
    model: Vector = case["model"].copy()
    buffer = made.rule.zero()
    sent = case["final"] if made.sends == "weights" else case["delta"]
    for vector, staleness in zip(sent, case["staleness"], strict=True):
        weight = made.weigh(UpdateFacts(int(staleness), examples=1))
        buffer = buffer.adding(compress("float32", vector, np.random.default_rng(0)), weight)
    made.step(model, buffer, made.starting_moments(SIZE))
    return model


def theirs(cases: Mapping[str, Case]) -> Mapping[str, Vector]:
    """Return the models after FLSim's steps, by the names of the cases."""
    with tempfile.TemporaryDirectory(prefix="fluffle-oracle-") as folder:
        given, results = Path(folder) / "cases.npz", Path(folder) / "results.npz"
        arrays = {f"{name}/{key}": value for name, case in cases.items() for key, value in case.items()}
        np.savez(given, allow_pickle=False, **arrays)
        command = [PEERS / "python", HERE / "beside" / "flsim_steps.py", given, results]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"FLSim has failed:\n{ended.stderr[-4000:]}")
        with np.load(results) as file:
            return {name: file[name] for name in file.files}


def main() -> None:
    """Compare, write, print, and end with 1 when a step differs."""
    if not (PEERS / "python").exists():
        raise SystemExit("FLSim is not installed: make oracle does that")
    report, others, verdicts = Report("oracle", "one step beside FLSim's"), OtherWork(), []
    strategies = {f"{name}-{seed}": name for name in ("fedasync", "fedbuff") for seed in range(SEEDS)}
    cases = {name: a_case(strategy, int(name.rpartition("-")[2])) for name, strategy in strategies.items()}
    found = theirs(cases)
    for strategy in ("fedasync", "fedbuff"):
        mine = {name: case for name, case in cases.items() if strategies[name] == strategy}
        moved = max(float(np.max(np.abs(found[name] - case["model"]))) for name, case in mine.items())
        errors = [roundings(ours(strategy, case), found[name], case) for name, case in mine.items()]
        verdict = Verdict(f"{strategy}: roundings", "at most", ALLOWED, max(errors), tolerance=0.0)
        verdicts.append(verdict)
        row: dict[str, Cell] = {"strategy": strategy, "steps": len(mine), "elements_each": SIZE}
        row |= {"largest_move": moved, "largest_difference_in_roundings": max(errors), "allowed": ALLOWED}
        report.add({**row, "verdict": str(verdict)}, others=others.share)
    report.show(wide_console())
    fill([PAGES / "papers.md"])
    raise SystemExit(exit_code(verdicts))


def roundings(mine: Vector, other: Vector, case: Case) -> float:
    """Return the largest difference between two models, in roundings of the largest number that is added."""
    largest = max(float(np.max(np.abs(case[name]))) for name in ("model", "delta", "final"))
    return float(np.max(np.abs(mine - other))) / (largest * float(np.finfo(np.float32).eps) / 2)


if __name__ == "__main__":
    main()
