"""Which processes one federation consists of, and the environment that each is started with. Pure."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import devnull
from pathlib import Path

from fluffle.events import Role
from fluffle.settings import ENV_PREFIX, env_name
from fluffle_cli.demo.keys import HELPERS, Keys
from fluffle_cli.demo.sealed import DemoKey
from fluffle_cli.demo.settings import DemoSettings
from fluffle_cli.demo.setups import Setup, SiteSetup

# Many processes share few cores: with a pool of threads in each they would only get in each other's way.
ONE_THREAD: Mapping[str, str] = dict.fromkeys(
    ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"
)
AGGREGATORS = ("aggregator-1", "aggregator-2")
EVALUATOR = "evaluator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process: its command, what its environment has besides this process's own, and its role if any."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    role: Role | None = None


def initial_model(settings: DemoSettings, path: Path) -> Part:
    """Return the process that builds version 0, from which every federation of this run starts."""
    arguments = ("--task", settings.task, "--seed", str(settings.seed), "--out", str(path))
    command = (sys.executable, "-m", "fluffle.initial_model", *arguments)
    return Part(name="initial-model", command=command, environment=ONE_THREAD)


def workers(
    settings: DemoSettings,
    setup: Setup,
    *,
    folder: Path,
    table: Path | None = None,
    keys: Keys | None = None,
    sealed: DemoKey | None = None,
    **where: str | None,
) -> list[Part]:
    """Return the workers of a federation whose files lie in `folder`; `where` is its name and broker.

    `table` is the TOML file with the table [data] of all sites, `keys` are those of secure aggregation, and
    `sealed` is the key of a sealed federation.
    """
    return [
        _part(
            "worker",
            "fluffle_worker",
            **where,
            task=settings.task,
            name=one.name,
            site=number,
            sites=len(setup.sites),
            split=settings.split,
            split_seed=settings.seed,
            seed=settings.seed,
            delay=one.delay_s,
            spool=folder / "spool",
            config=table_of(one, folder) if one.data else table,
            **(keys.of(one.name) if keys else {}),
            **(sealed.of_site if sealed else {}),
            **one.settings,
        )
        for number, one in enumerate(setup.sites)
    ]


def table_of(site: SiteSetup, folder: Path) -> Path:
    """Return the TOML file with the table [data] of a site, in the folder of its federation."""
    return folder / "sites" / f"{site.name}.toml"


def text_of(table: Mapping[str, object]) -> str:
    """Return a table [data] as TOML, in which texts, numbers and lists of them are written as in JSON."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    return "\n".join(["[data]", *lines, ""])


def evaluator(
    settings: DemoSettings,
    *,
    curves: Path,
    table: Path | None = None,
    sealed: DemoKey | None = None,
    **where: str | None,
) -> Part:
    """Return the evaluator, which writes `curves` for TensorBoard."""
    return _part(
        "evaluator",
        *("fluffle_cli.main", "evaluator"),
        **where,
        task=settings.task,
        name=EVALUATOR,
        tensorboard=curves,
        config=table,
        **(sealed.of_site if sealed else {}),
    )


def helpers(keys: Keys, **where: str | None) -> list[Part]:
    """Return the helpers of secure aggregation."""
    return [_part("helper", "fluffle_helper", name=name, **where, **keys.of_helper(name)) for name in HELPERS]


def aggregators(
    settings: DemoSettings,
    setup: Setup,
    *,
    initial_model: Path,
    keys: Keys | None = None,
    secret: Path | None = None,
    sealed: DemoKey | None = None,
    **where: str | None,
) -> list[Part]:
    """Return two aggregators: RabbitMQ lets one of them lead, and the other stands by.

    `secret` is the file with the secret of the noise, for differential privacy.
    """
    return [
        _part(
            "aggregator",
            "fluffle_cli.demo.aggregator",
            **where,
            task=settings.task,
            name=name,
            initial_model=initial_model,
            seed=settings.seed,
            strategy=setup.strategy,
            **settings.settings_of(setup.strategy),
            target=settings.goal,
            max_seconds=settings.max_seconds,
            **({"secure_aggregation": True, **keys.public} if keys else {}),
            **(sealed.of_aggregator if sealed else {}),
            **settings.of_aggregator(len(setup.sites), secret),
            **{
                "local_epochs": settings.task_defaults.local_epochs,
                "local_steps": settings.task_defaults.local_steps,
                "learning_rate": settings.task_defaults.learning_rate,
                **setup.settings,
            },
        )
        for name in AGGREGATORS
    ]


def afterwards(
    settings: DemoSettings, *, models: Mapping[int, Sequence[Path]], out: Path, table: Path | None = None
) -> Part:
    """Return the process that saves final models (.safetensors) as .keras, and trains in one place.

    `models` are those of each seed.
    """
    arguments = {
        "task": settings.task,
        "epochs": settings.task_defaults.central_epochs,
        # In one place nobody trains for longer than the federation might.
        "max_seconds": settings.max_seconds,
        "learning_rate": settings.task_defaults.learning_rate,
        "config": str(table or devnull),
        "models": {seed: list(map(str, paths)) for seed, paths in models.items()},
    }
    command = (sys.executable, "-m", "fluffle_cli.demo.afterwards", str(out), json.dumps(arguments))
    return Part(name="afterwards", command=command, environment={})


def report(folder: Path) -> Part:
    """Return the process that writes a run's page, from its files."""
    command = (sys.executable, "-m", "fluffle_cli.main", "report", str(folder))
    return Part(name="report", command=command, environment={f"{ENV_PREFIX}CONFIG": devnull})


def _part(role: Role, *module: str, name: str, **settings: object) -> Part:
    settings["name"] = name
    # In the environment, since everyone on the machine sees a command line, and the URL has the password.
    said = {env_name(key): str(value) for key, value in settings.items() if value is not None}
    said = {f"{ENV_PREFIX}LOG_FORMAT": "json", f"{ENV_PREFIX}CONFIG": devnull} | said
    command = (sys.executable, "-m", *module)
    return Part(name=name, role=role, command=command, environment={**ONE_THREAD, **said})
