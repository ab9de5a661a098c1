"""The settings of the demo, and the target and training time that suit each ready task."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field

from fluffle.errors import ConfigError
from fluffle.settings import SharedSettings, with_table
from fluffle.task import DATA_SETS
from fluffle_aggregator.choices import readable_by
from fluffle_aggregator.goal import Target, parse_target
from fluffle_aggregator.private.combinations import require_combinable as require_private
from fluffle_aggregator.protection import PROTECTED_STRATEGY
from fluffle_aggregator.sealed.combinations import require_combinable as require_sealed
from fluffle_aggregator.secure.combinations import REFUSED, require_combinable
from fluffle_aggregator.secure.settings import FEWEST_WORKERS
from fluffle_aggregator.staleness import parse_discount
from fluffle_aggregator.strategies.fedavg import FedAvgSettings
from fluffle_aggregator.strategies.registry import STRATEGIES, StrategySettings
from fluffle_cli.demo.privacy import USUAL_TARGET, USUAL_TASK, USUAL_WORKERS, DemoPrivacySettings
from fluffle_cli.demo.sealed import DemoSealedSettings
from fluffle_cli.demo.setups import UNEVEN_TASK, Setup, SiteSetup, uneven_setups
from fluffle_cli.held import HOLD_S
from fluffle_cli.report.run import make_empty_folder
from fluffle_worker.data import DataSteps

# The strategy that `--compare` sets beside the chosen one.
BASELINE = FedAvgSettings.named
SEEDS_TO_COMPARE = 5
# Without remedies the target is not reached: nobody need wait for long to see that.
UNEVEN_SECONDS: Final = 60.0
# On a slow machine two dozen workers take so long to spend their privacy.
PRIVATE_SECONDS: Final = 300.0
# What says which sites there are, or what is compared: uneven sites have their own.
OF_ALIKE_SITES: Final = frozenset(("compare", "workers", "task", "split", "slowdown"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefaults:
    """A target that a task can hold, and how long to train.

    A worker's round has `local_epochs`, or `local_steps` minibatches if given. `central_epochs` are those of
    the model that is trained in one place to compare.
    """

    target: str
    local_epochs: int = 1
    local_steps: int | None = None
    learning_rate: float | None = None
    central_epochs: int = 30


TASK_DEFAULTS: Mapping[str, TaskDefaults] = {
    "digits": TaskDefaults(target="accuracy>=0.95", local_epochs=3, learning_rate=0.2),
    UNEVEN_TASK: TaskDefaults(target="accuracy>=0.95", local_epochs=3, learning_rate=0.2),
    USUAL_TASK: TaskDefaults(target=USUAL_TARGET, local_epochs=3, learning_rate=0.2),
    "fashion_mnist": TaskDefaults(target="accuracy>=0.8", local_steps=60, central_epochs=1),
    "diabetes": TaskDefaults(target="loss<=0.74", central_epochs=20),
}


class DemoSettings(StrategySettings, DemoPrivacySettings, DemoSealedSettings, SharedSettings):
    """Flags of `fluffle demo`, keys of the table [demo]."""

    part: ClassVar[str] = "demo"

    staleness: Annotated[str, readable_by(parse_discount)] = Field(
        "polynomial:0.3",
        description="How much a stale update counts with fedbuff and fedasync: constant, "
        "polynomial[:EXPONENT] (0.5), hinge[:A][:B] (10 and 4) or adaptive[:TAU_C] (4). The numbers in "
        "parentheses are the defaults.",
    )
    buffer_size: int | None = Field(
        1,
        ge=1,
        description="Number of updates in one version; synchronous rounds always wait for every worker.",
    )
    compare: bool = Field(
        False,
        description=f"With each of the seeds, run synchronous {BASELINE} first, then the strategy, and "
        "compare them in the report: the median over the seeds with the range.",
    )
    seeds: int | None = Field(
        None,
        ge=1,
        description="Run with so many seeds one after the other, from --seed on. Default: 5 with --compare, "
        "else 1.",
    )
    sites: Literal["alike", "uneven"] = Field(
        "alike",
        description="What the sites are like: alike (they differ in their speed and in the split), or "
        "uneven: five sites with digits, of which two are long-tailed, one has missing values, one is 16 "
        "times as slow and one is small. These run without remedies first, and then with them.",
    )
    secure_aggregation: bool = Field(
        False,
        description="Let three helpers open the sum of each buffer, so that the aggregator sees no single "
        "update. The strategy is then fedbuff with buffers of 3, unless given.",
    )
    workers: int = Field(4, ge=1, le=64, description="Workers, each with its own share of the data.")
    task: str = Field(
        "digits",
        description="What to train: digits, fashion_mnist, diabetes, or your own package.module:name.",
    )
    split: str = Field(
        "dirichlet:0.5", description="How the data is split: iid, dirichlet:ALPHA or shards:LABELS_PER_SITE."
    )
    delay: float = Field(0.25, ge=0, description="Seconds that the fastest worker idles in each round.")
    slowdown: float = Field(
        8.0, ge=1, description="How many times as long the slowest worker idles; the others lie between."
    )
    target: Annotated[str, readable_by(parse_target)] | None = Field(
        None,
        description='What ends the demo: 0.95 (accuracy), "accuracy>=0.95" or "loss<=0.7"; each ready task '
        f"has one by default. It holds when every evaluation within {HOLD_S:g} seconds reaches it.",
    )
    max_seconds: float = Field(
        120.0, gt=0, description="Seconds of training after which a federation ends without its target."
    )
    seed: int = Field(
        0, ge=0, description="Seed of the split, the first weights and the minibatches; the first of several."
    )
    out: Path | None = Field(
        None, description="Folder for the results, by default runs/TASK-STRATEGY-DATE-TIME."
    )
    dashboard: bool = Field(
        False, description="Serve the live page of the run, and open it where there is a display."
    )
    keep_broker: bool = Field(False, description="Leave RabbitMQ running at the end, to look around in it.")

    @property
    def task_name(self) -> str:
        """The name of the task's module without its package, as a part of names of files and queues."""
        name = self.task.partition(":")[0].rpartition(".")[2].lower()
        return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)

    @property
    def task_defaults(self) -> TaskDefaults:
        """What suits the task; ConfigError when it is the user's own and no target is given."""
        if self.task not in TASK_DEFAULTS and self.target is None:
            raise ConfigError(
                f"--target is not set, and only the ready tasks ({', '.join(DATA_SETS)}) have one: give "
                'a metric of your task\'s evaluation and a bound, such as --target "accuracy>=0.9" or '
                '"loss<=0.5"'
            )
        return TASK_DEFAULTS.get(self.task, TaskDefaults(target=""))

    @property
    def goal(self) -> Target:
        """The target, read; ConfigError when there is none."""
        return parse_target(self.target or self.task_defaults.target)

    def settings_of(self, strategy: str) -> dict[str, object]:
        """Return what an aggregator of this strategy is given: the settings that differ from its defaults."""
        kind = STRATEGIES[strategy]
        own = {name: getattr(self, name) for name in kind.model_fields}
        if self.secure_aggregation or self.sealed:
            # Weights follow from integers.
            own = {name: value for name, value in own.items() if name not in ("staleness", "weigh_by")}
        if kind.is_synchronous:
            own["buffer_size"] = len(self.setups[-1].sites)
        return {name: value for name, value in own.items() if value != kind.model_fields[name].default}

    @property
    def setups(self) -> list[Setup]:
        """The federations that are run one after the other, with each seed."""
        if self.sites == "uneven":
            return uneven_setups(self.strategy, delay_s=self.delay)
        sites = [
            SiteSetup(name=name, delay_s=delay_s)
            for name, delay_s in zip(self.worker_names, self.delays_s, strict=True)
        ]
        strategies = [*([BASELINE] if self.compare else []), self.strategy]
        return [Setup(name=each, strategy=each, sites=sites) for each in strategies]

    @property
    def data_table(self) -> dict[str, object]:
        """What the table [data] of the TOML file says, for all sites; empty where there is none."""
        steps = with_table(DataSteps(), self.config)
        return {} if steps is None else steps.model_dump(exclude_unset=True)

    @property
    def each_seed(self) -> range:
        """The seeds that are run one after the other."""
        return range(self.seed, self.seed + (self.seeds or (SEEDS_TO_COMPARE if self.compare else 1)))

    def place(self, setup: Setup, seed: int) -> list[str]:
        """Return what tells one federation of this run from the others; nothing when it is the only one."""
        of_seed = [f"seed-{seed}"] if len(self.each_seed) > 1 else []
        return [*of_seed, *([setup.name.replace(" ", "-")] if len(self.setups) > 1 else [])]

    @property
    def about_sites(self) -> str:
        """What the sites are like, in words."""
        if self.sites == "uneven":
            return (
                "five sites with digits: two have few examples of most digits, one has missing values, one "
                "is 16 times as slow, and one is small"
            )
        delays = ", ".join(f"{delay:g}" for delay in self.delays_s)
        return f"{self.workers} workers idle {delays} s in each round, to play devices of different speed"

    @property
    def worker_names(self) -> list[str]:
        """The workers, the fastest first."""
        width = len(str(self.workers - 1))
        return [f"worker-{site:0{width}d}" for site in range(self.workers)]

    @property
    def delays_s(self) -> list[float]:
        """What each worker idles: a geometric series from `delay` to `slowdown` times as much."""
        steps = max(1, self.workers - 1)
        return [round(self.delay * self.slowdown ** (site / steps), 4) for site in range(self.workers)]

    def checked(self) -> Self:
        """Return these settings, with what uneven sites and secure aggregation need where they are wanted.

        Raises ConfigError for what would otherwise be refused by a child process only.
        """
        self.require_epsilon()
        if self.dp_epsilon is not None:
            return self._made_private()._checked()
        if self.sealed:
            return self._made_sealed()._checked()
        return self._secured()._checked() if self.secure_aggregation else self._checked()

    def _made_private(self) -> Self:
        if self.sites == "uneven" or self.compare or self.secure_aggregation or self.sealed:
            raise ConfigError(
                "--dp-epsilon trains one federation of alike sites, whose aggregator adds the noise: leave "
                "out --sites uneven, --compare, --secure-aggregation and --sealed"
            )
        given = self.model_fields_set
        workers = self.workers if "workers" in given else USUAL_WORKERS
        plan = self.privacy_plan(workers)
        separation = self.separation_of(workers)
        defaults: dict[str, object] = {
            "workers": workers,
            "task": USUAL_TASK,
            "strategy": PROTECTED_STRATEGY,
            "buffer_size": max(1, workers // separation),
            # The noise would not be discounted, so that the late updates would drown in it.
            "staleness": "constant",
            "max_seconds": PRIVATE_SECONDS,
        }
        private = self.model_copy(update={name: each for name, each in defaults.items() if name not in given})
        if plan:
            plan.target.require_workers(workers, private.buffer_size or 1)
        chosen = {name: getattr(self, name) for name in given}
        require_private("central", private.make_strategy(), chosen, codec="float32", is_auto=False)
        return private

    def _made_sealed(self) -> Self:
        if self.sites == "uneven" or self.secure_aggregation:
            raise ConfigError(
                "--sealed trains whole models, under one key that all sites share: leave out --sites uneven "
                "and --secure-aggregation"
            )
        given = self.model_fields_set
        defaults = {"strategy": PROTECTED_STRATEGY, "staleness": "polynomial:0.5"}
        made = self.model_copy(update={name: each for name, each in defaults.items() if name not in given})
        chosen = {name: getattr(self, name) for name in given}
        require_sealed(made.make_strategy(), chosen, is_auto=False)
        return made

    def _secured(self) -> Self:
        if self.sites == "uneven":
            raise ConfigError(
                "--sites uneven trains parts of the model, which cannot be masked: leave it out"
            )
        if self.workers < FEWEST_WORKERS:
            raise ConfigError(
                f"--secure-aggregation needs {FEWEST_WORKERS} workers for each sum, not {self.workers}"
            )
        defaults = {
            "strategy": PROTECTED_STRATEGY,
            "buffer_size": FEWEST_WORKERS,
            "staleness": "polynomial:0.5",
        }
        secured = self.model_copy(
            update={name: each for name, each in defaults.items() if name not in self.model_fields_set}
        )
        given = self.model_fields_set & set(REFUSED)
        require_combinable(secured.make_strategy(), given, self.weigh_by if "weigh_by" in given else "none")
        return secured

    def _checked(self) -> Self:
        if ":" not in self.task and self.task not in DATA_SETS:
            known = ", ".join(DATA_SETS)
            raise ConfigError(f"--task must be one of {known}, or package.module:name, not {self.task!r}")
        _ = self.goal
        if self.sites == "uneven" and (given := sorted(OF_ALIKE_SITES & self.model_fields_set)):
            flags = ", ".join(f"--{name}" for name in given)
            raise ConfigError(f"--sites uneven has sites of its own, with digits: leave out {flags}")
        if self.sites == "uneven" and self.data_table:
            raise ConfigError(
                "--sites uneven has data steps of its own, and the TOML file has a table [data]: name "
                "another file with --config"
            )
        if self.compare and self.strategy == BASELINE:
            others = " or ".join(name for name in STRATEGIES if name != BASELINE)
            raise ConfigError(f"--compare sets {BASELINE} beside another --strategy: choose {others}")
        self.make_strategy()
        if self.sites != "uneven":
            return self
        is_given = "max_seconds" in self.model_fields_set
        most_s = self.max_seconds if is_given else UNEVEN_SECONDS
        return self.model_copy(update={"task": UNEVEN_TASK, "max_seconds": most_s})

    def make_folder(self) -> Path:
        """Make the folder of this run; ConfigError when it has something in it already."""
        kind = "uneven" if self.sites == "uneven" else "compare" if self.compare else self.strategy
        when = datetime.now().astimezone()
        folder = self.out or Path("runs") / f"{self.task_name}-{kind}-{when:%Y%m%d-%H%M%S}"
        return make_empty_folder(folder, given_as="--out ")
