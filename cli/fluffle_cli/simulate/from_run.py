"""Settings and speeds from the folder of a run that `fluffle demo` or `fluffle report` wrote: "what if"."""

from collections import defaultdict
from collections.abc import Set
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from fluffle.errors import ConfigError
from fluffle.settings import load_arguments
from fluffle_aggregator.goal import parse_target
from fluffle_aggregator.strategies.registry import STRATEGIES
from fluffle_cli.report.run import SUMMARY, FederationRun, Run, read_run
from fluffle_cli.simulate.names import ENDS_EARLY, NOT_SIMULATED
from fluffle_cli.words import count, in_a_row

if TYPE_CHECKING:
    from fluffle_cli.simulate.settings import SimulateSettings

# What a plan says, under the same names as the settings.
OF_PLAN: Final = (
    "local_epochs",
    "local_steps",
    "round_seconds",
    "min_steps",
    "max_steps",
    "batch_size",
    "learning_rate",
    "keep_optimizer",
    "proximal_mu",
    "codec",
)
OF_EPOCHS: Final = ("local_epochs", "local_steps")
OF_SECONDS: Final = ("round_seconds", "min_steps", "max_steps")
# What a summary says too, and is not taken from there: how long rounds take, which follows from those of the
# run, what the folder itself tells, and what says nothing about a single run.
NOT_OF_SUMMARY: Final = frozenset(
    {
        *("device_seconds", "example_seconds", "redraw", "clients", "task", "seed", "target", "strategy"),
        *("train", "from_run", "sweep", "seeds", "max_runs", "recommend", "out"),
    }
)
# What depends on the content of updates, on their bytes or on examples: --no-train has none of it.
NEEDS_TRAINING: Final[tuple[str, ...]] = (
    *("target", "best", "limit_norm", "limit_share", "limit_messages", "limit_mib", "min_examples"),
    *("limit_examples", "throttle", "bandwidth", "dp"),
)
OF_STRATEGIES: Final = frozenset(name for kind in STRATEGIES.values() for name in kind.model_fields)


def with_those_of_its_run(settings: "SimulateSettings") -> tuple["SimulateSettings", list[str]]:
    """Return settings with those of the run that `from_run` names wherever nothing else is given.

    The second value are sentences that say what was taken, and what the folder lacks. Raises ConfigError for
    a folder that is none of a run, or whose run does not say how long its rounds took.
    """
    if settings.from_run is None:
        return settings, []
    for name in ("device_seconds", "example_seconds", "redraw"):
        if name in settings.model_fields_set:
            raise ConfigError(f"--from-run and {name} both say how long rounds take: leave one of them out")
    run = _read(settings.from_run)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    federation = chosen_federation(run, settings.strategy if "strategy" in given else None)
    speeds = speeds_of(run, federation)
    found, lacking = _found(run, federation, type(settings).model_fields.keys() - NOT_SIMULATED)
    if settings.is_sweep and (settings.target or "target" in found):
        found = {name: value for name, value in found.items() if name not in ENDS_EARLY}
    found["clients"] = len(speeds)
    strategy = str(given.get("strategy", found.get("strategy", settings.strategy)))
    if kind := STRATEGIES.get(strategy):
        lost = OF_STRATEGIES - kind.model_fields.keys()
        found = {name: value for name, value in found.items() if name not in lost}
    if not settings.train:
        found = {name: value for name, value in found.items() if name not in NEEDS_TRAINING}
    merged = load_arguments(type(settings), {**found, **given})
    taken = ", ".join(f"{name} {value}" for name, value in sorted(found.items()) if name not in given)
    notes = [f"From {settings.from_run}: {taken}; and the speeds of its {len(speeds)} workers"]
    clients = int(run.about.settings.get("clients", 0))
    heard_of = max(len(run.about.delays_s), len(federation.view.workers), clients)
    if left_out := heard_of - len(speeds):
        what = count(left_out, "worker has", "workers have")
        notes.append(f"{what} no update in it: left out, since nothing says how fast they are")
    missing = [name for name in lacking if name not in given]
    if missing:
        notes.append(f"{settings.from_run} does not say {in_a_row(missing)}: this command's own are used")
    return merged, notes


def seconds_of_its_devices(folder: Path, strategy: str, clients: int) -> tuple[list[float], list[float]]:
    """Return what each device adds to a round, and what it takes for one example, as in this folder's run.

    More devices than the run had take the speeds of its workers in turn.
    """
    run = read_run(folder)
    speeds = speeds_of(run, chosen_federation(run, strategy))
    chosen = [speeds[index % len(speeds)] for index in range(clients)]
    return [fixed_s for fixed_s, _ in chosen], [example_s for _, example_s in chosen]


def chosen_federation(run: Run, strategy: str | None) -> FederationRun:
    """Return the federation of a run with this strategy, or else its last one."""
    return next((each for each in run.federations if each.strategy == strategy), run.federations[-1])


def speeds_of(run: Run, federation: FederationRun) -> list[tuple[float, float]]:
    """Return of each worker, by its name, the seconds that it idles in a round, and those for one example.

    A worker's round takes the median of what its rounds took. What it does not idle is spread over the
    examples of a round, so that longer rounds and other sizes take longer in proportion.
    """
    plan = federation.last.plan
    is_chosen = plan.round_seconds is not None
    took: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for version in federation.versions:
        for one in version.folded:
            if one.train_s > 0:
                took[one.id.worker].append((one.train_s, one.steps * one.batch_size * is_chosen))
    contributors = federation.last.contributors
    if silent := sorted(name for name, one in contributors.items() if one.updates and name not in took):
        raise ConfigError(
            f"{run.folder} does not say how long the rounds of {in_a_row(silent)} took: a simulation cannot "
            "take their speeds from it; give --device-seconds instead of --from-run"
        )
    if not took:
        raise ConfigError(f"{run.folder} has no update in it: a simulation cannot take speeds from it")
    names = sorted(took)
    idles = (
        dict(zip(names, run.about.delays_s, strict=False)) if len(run.about.delays_s) == len(names) else {}
    )
    speeds = []
    for name in names:
        round_s, idle_s = median(seconds for seconds, _ in took[name]), idles.get(name, 0.0)
        fixed_s = min(round_s, idle_s)
        known = plan.examples_of_round(contributors[name].examples)
        each_s = [max(0.0, seconds - fixed_s) / max(1, own or known) for seconds, own in took[name]]
        speeds.append((fixed_s, median(each_s)))
    return speeds


def _read(folder: Path) -> Run:
    """Read a run. Raises ConfigError for a folder that is none of a run, such as that of a whole sweep."""
    if not (folder / SUMMARY).is_file():
        inside = sorted(path.parent for path in folder.glob(f"*/*/{SUMMARY}"))
        hint = (
            f"it is the folder of a sweep: give one of its runs, such as {inside[0]}"
            if inside
            else "give the folder of a run that `fluffle demo`, `fluffle simulate` or `fluffle report` wrote"
        )
        raise ConfigError(f"--from-run {folder} has no {SUMMARY}: {hint}")
    return read_run(folder)


def _found(run: Run, federation: FederationRun, names: Set[str]) -> tuple[dict[str, object], list[str]]:
    """Return those of the settings of these names that a run's files say, and those that they lack."""
    about, plan = run.about, federation.last.plan
    shown = {name.replace("-", "_"): value for name, value in about.settings.items()}
    found: dict[str, object] = {
        name: getattr(plan, name) for name in OF_PLAN if getattr(plan, name) is not None
    }
    # Either of them says how long a round is.
    for name in OF_EPOCHS if plan.round_seconds is not None else OF_SECONDS:
        found.pop(name, None)
    found |= {name: shown[name] for name in shown.keys() & (names - NOT_OF_SUMMARY)}
    # A demo's synchronous rounds wait for all, whatever its buffer_size.
    if federation.strategy in STRATEGIES and STRATEGIES[federation.strategy].is_synchronous:
        found.pop("buffer_size", None)
    lacking = []
    # Of a federation that was read from RabbitMQ, the task is not known, but its name.
    if "federation" not in about.settings:
        found["task"] = about.task
    else:
        lacking.append("task")
    if about.seed is None:
        lacking.append("seed")
    else:
        found["seed"] = about.seed
    if "split" not in found:
        lacking.append("split")
    if about.target:
        found["target"] = str(parse_target(about.target))
    if federation.strategy in STRATEGIES:
        found["strategy"] = federation.strategy
    else:
        lacking.append("strategy")
    return found, lacking
