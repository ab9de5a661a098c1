"""Which strategy is the soonest at its target with real processes, and how far a simulation says the same.

    make race

The federations are those of `fluffle demo`: a private RabbitMQ, two aggregators, workers that idle to play
slow devices, and an evaluator. Each strategy has the settings that `python -m benchmarks.algorithms` tuned
for the scene on the virtual clock, as docs/results/algorithms.md says, unless --strategies gives others. The
strategies take turns, seed by seed, and all of them begin with the same version 0, data and minibatches.

`held_s` is when the target began to hold: every evaluation within 3 seconds reaches it. A run that does not
hold it within --max-seconds counts as never. `against_fedavg` is how many times as fast as FedAvg with the
same seed: the median and the worst of the seeds. The same settings and seeds are then played on the virtual
clock (`simulated_s`), where training and messages take no time: `real_over_simulated` divides the seconds of
those runs that hold the target in both, and the last row has all of them together, with the correlation of
their logarithms.
"""

import argparse
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.algorithms import CENTRAL, SCENES, Scene, play_simulations
from benchmarks.contenders import read_label
from benchmarks.measuring import (
    Cell,
    OtherWork,
    Report,
    Spread,
    seconds_in_words,
    times_as_fast,
    wide_console,
)
from benchmarks.page import PAGES
from benchmarks.sides import private_broker
from fluffle.settings import load_arguments
from fluffle_aggregator.goal import parse_target
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.demo import parts
from fluffle_cli.demo.federation_run import DemoFederation
from fluffle_cli.demo.processes import Processes
from fluffle_cli.demo.settings import BASELINE, DemoSettings
from fluffle_cli.node import BrokerNode
from fluffle_cli.simulate.settings import SimulateSettings
from fluffle_cli.watching.terminal import Screen

Seconds = list[float]


def main() -> None:
    """Race, simulate, write and print; after Ctrl-C with the seeds that are done."""
    parser = argparse.ArgumentParser(prog="race", description="Race the strategies with real processes.")
    parser.add_argument("--scene", default="demo", choices=SCENES, help="of benchmarks.algorithms")
    parser.add_argument(
        "--strategies",
        nargs="+",
        metavar="'NAME SETTING=VALUE ...'",
        help=f"such as '{BASELINE}' 'fedbuff buffer_size=2' (default: as tuned)",
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds, from 0 on (default: 5)")
    parser.add_argument("--max-seconds", type=float, default=120.0, help="end of a run (default: 120)")
    given = parser.parse_args()
    scene = replace(SCENES[given.scene], max_seconds=given.max_seconds)
    labels = given.strategies or tuned(given.scene)
    plans = {
        label: [scene.settings(read_label(label), seed) for seed in range(given.seeds)] for label in labels
    }
    for each in plans.values():
        each[0].check()
    report, others = (
        Report(
            "race", f"race to {parse_target(scene.target)}: seconds from which it is held, real processes"
        ),
        OtherWork(),
    )
    console = wide_console()
    real = race(plans, report, console)
    share, seeds = others.share, min(map(len, real.values()))
    if not seeds:
        raise SystemExit("no seed is done, so that there is nothing to show")
    found = play_simulations([each[:seeds] for each in plans.values()], "the same on the virtual clock")
    simulated = {
        label: [one.result.target_s for one in mine] for label, mine in zip(plans, found, strict=True)
    }
    for row in rows({label: each[:seeds] for label, each in real.items()}, simulated, scene):
        report.add({"scene": given.scene, **row}, others=share)
    report.show(console)


def tuned(scene: str) -> list[str]:
    """Return the strategies with their tuned settings for a scene, as docs/results/algorithms.md has them."""
    _, _, page = (PAGES / "algorithms.md").read_text(encoding="utf-8").partition("<!-- results: algorithms")
    rows = [line.split(" | ") for line in page.partition("<!-- end -->")[0].splitlines()]
    names = [row[1] for row in rows if row[0] == f"| {scene}"]
    if not names:
        raise SystemExit(
            f"nothing is tuned for the scene {scene}: give --strategies, or run `make performance` after "
            f"`python -m benchmarks.algorithms --scenes '{scene}'`"
        )
    return [name for name in names if name != CENTRAL]


def race(
    plans: Mapping[str, Sequence[SimulateSettings]], report: Report, console: Console
) -> dict[str, Seconds]:
    """Run each strategy with each seed, one after the other; Ctrl-C ends it, and what is done is returned."""
    found: dict[str, Seconds] = {label: [] for label in plans}
    seeds, wanted = len(next(iter(plans.values()))), len(plans)
    with private_broker(report, management=True) as (folder, node), console.status("") as status:
        try:
            for seed in range(seeds):
                for place, (label, each) in enumerate(plans.items()):
                    status.update(f"seed {seed + 1} of {seeds}, strategy {place + 1} of {wanted}: {label}")
                    name = f"race-{seed}-{place}"
                    held_s = run_for_real(demo_of(each[seed]), name, folder / name, node)
                    found[label].append(held_s)
                    console.print(f"seed {seed}: {label}: {seconds_in_words([held_s])} s", markup=False)
        except KeyboardInterrupt:
            console.print("Stopped: what follows is of the seeds that are done")
    return found


def demo_of(simulated: SimulateSettings) -> DemoSettings:
    """Return the settings of a demo that does with real processes what a simulation does."""
    kind = STRATEGIES[simulated.strategy]
    name, *numbers = simulated.device_seconds.split(":")
    if name not in ("spread", "constant"):
        raise SystemExit(
            f"a demo's workers idle as in spread or constant, not as in {simulated.device_seconds}"
        )
    delay, slowdown = (*map(float, numbers), 1.0)[:2]
    return load_arguments(
        DemoSettings,
        {each: getattr(simulated, each) for each in kind.model_fields}
        | {each: getattr(simulated, each) for each in ("strategy", "task", "split", "target", "seed")}
        | {"workers": simulated.clients, "max_seconds": simulated.max_seconds}
        | {"delay": delay, "slowdown": slowdown},
    )


def run_for_real(settings: DemoSettings, name: str, folder: Path, node: BrokerNode) -> float:
    """Run one federation, and return the seconds until its target held; infinity if it did not."""
    builder, initial_model = Processes(folder / "logs"), folder / "version-0.safetensors"
    federation = DemoFederation(
        settings,
        settings.setups[-1],
        federation=name,
        folder=folder,
        screen=Screen(Console(quiet=True)),
        stop=threading.Event(),
    )
    try:
        builder.start([parts.initial_model(settings, initial_model)])
        federation.play(node, builder, initial_model)
    finally:
        builder.stop(patience_s=0.0)
    return federation.results(".").held_s(settings.goal)


def rows(
    real: Mapping[str, Seconds], simulated: Mapping[str, Seconds], scene: Scene
) -> list[dict[str, Cell | Spread]]:
    """Return a row for each strategy, and one for all runs that hold the target in both."""
    baseline = next((label for label in real if label.split()[0] == BASELINE), None)

    def against(found: Mapping[str, Seconds], label: str) -> str:
        return times_as_fast(found[label], found[baseline], scene.max_seconds) if baseline else ""

    made: list[dict[str, Cell | Spread]] = []
    pairs: list[tuple[float, float]] = []
    for label, seconds in real.items():
        both = [
            (a, b) for a, b in zip(seconds, simulated[label], strict=True) if math.isfinite(a + b) and b > 0
        ]
        pairs += both
        made.append(
            {
                "strategy": label,
                "held_s": seconds_in_words(seconds),
                f"against_{BASELINE}": against(real, label),
                "simulated_s": seconds_in_words(simulated[label]),
                f"simulated_against_{BASELINE}": against(simulated, label),
                **ratio_of(both),
            }
        )
    together: dict[str, Cell | Spread] = {
        "strategy": f"all {len(pairs)} that hold it in both",
        **ratio_of(pairs),
    }
    if len(pairs) > 2:
        logs = np.log(np.array(pairs))
        together["correlation"] = float(np.corrcoef(logs[:, 0], logs[:, 1])[0, 1])
    return [*made, together]


def ratio_of(pairs: Sequence[tuple[float, float]]) -> dict[str, Cell | Spread]:
    """Return the cell with the real seconds over the simulated ones; none when there are no pairs."""
    return {"real_over_simulated": Spread(tuple(a / b for a, b in pairs))} if pairs else {}


if __name__ == "__main__":
    main()
