"""Which variables FLUFFLE_... of the environment mean something, and what a misspelt one may mean. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

PREFIX = "FLUFFLE_"
# The settings of all parts and commands: a machine's environment may hold those of another part. (A test
# compares this list with the settings classes, which one process never has all in memory.)
SETTINGS = frozenset(
    {
        "as_json",
        "batch_size",
        "best",
        "broker_ca_file",
        "broker_cert_file",
        "broker_key_file",
        "broker_password_file",
        "broker_url",
        "buffer_size",
        "buffer_timeout",
        "codec",
        "commit_after",
        "commit_every",
        "compare",
        "compare_with",
        "connect_timeout_s",
        "dashboard",
        "dashboard_host",
        "dashboard_port",
        "delay",
        "downlink_codec",
        "federation",
        "file",
        "folder",
        "force",
        "from_broker",
        "heartbeat_s",
        "initial_model",
        "interval",
        "keep_broker",
        "keep_optimizer",
        "learning_rate",
        "learning_rate_schedule",
        "limit_examples",
        "limit_messages",
        "limit_mib",
        "limit_norm",
        "limit_share",
        "local_epochs",
        "local_steps",
        "log_format",
        "login_patience",
        "management_url",
        "max_message_mib",
        "max_seconds",
        "max_staleness",
        "max_updates",
        "max_versions",
        "metrics_host",
        "metrics_port",
        "min_examples",
        "mixing",
        "name",
        "on_large_norm",
        "out",
        "password",
        "password_file",
        "password_folder",
        "print_only",
        "proximal_mu",
        "reason",
        "role",
        "seed",
        "server_learning_rate",
        "server_momentum",
        "server_optimizer",
        "site",
        "sites",
        "slowdown",
        "split",
        "split_seed",
        "spool",
        "spool_max_mib",
        "staleness",
        "stop_on_nan",
        "strategy",
        "target",
        "target_hold",
        "task",
        "tensorboard",
        "train_offline",
        "update",
        "users",
        "verbose",
        "version",
        "watch",
        "weigh_by",
        "which",
        "worker",
        "workers",
        "yes",
    }
)
# What is no setting: the settings file, where RabbitMQ is, what docker-compose.yml reads, and what the
# tests and benchmarks read.
OTHERS = frozenset(
    {
        "config",
        "rabbitmq_bin",
        "broker_folder",
        "task_folder",
        "ui_port",
        "prometheus_port",
        "grafana_port",
        "tls_address",
        "simulation_seeds",
        "test_model_mb",
        "test_seed",
        "light_parameters",
    }
)
KNOWN = frozenset(PREFIX + name.upper() for name in SETTINGS | OTHERS)


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable that nothing reads, and the known one that it is most like; empty when none is."""

    name: str
    meant: str


def unknown_variables(names: Iterable[str]) -> Iterator[UnknownVariable]:
    """Find those of the environment's variables that look like a setting, but are none."""
    for name in sorted(names):
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in KNOWN:
            close = get_close_matches(
                upper.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in KNOWN], 1
            )
            yield UnknownVariable(name, PREFIX + close[0] if close else "")
