"""docker-compose.yml, read as text (no YAML parser is a dependency): what must not slip in or out of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fluffle.settings import SharedSettings, env_name
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_worker.settings import EvaluatorSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
TEXT = "\n".join(line for line in COMPOSE.splitlines() if not line.lstrip().startswith("#"))


def block(start: str, indent: int) -> str:
    """Return the lines below `start` that are indented deeper than it."""
    rest = TEXT.partition(f"\n{start}\n")[2].splitlines()
    deeper = " " * (indent + 1)
    end = next((n for n, line in enumerate(rest) if line and not line.startswith(deeper)), len(rest))
    return "\n".join(rest[:end])


SHARED = block("x-shared: &shared", 0)
AGGREGATOR = block("x-aggregator: &aggregator", 0)
SERVICES = {
    name: block(f"  {name}:", 2)
    for name in re.findall(r"^  ([a-z-]+):$", block("services:", 0), re.MULTILINE)
}


def variables(text: str) -> set[str]:
    return set(re.findall(r"^ +(FLUFFLE_[A-Z_]+):", text, re.MULTILINE))


def test_the_only_published_port_is_the_ui_on_this_machine() -> None:
    published = re.findall(r"^ +ports:\n((?: +- .*\n?)+)", TEXT, re.MULTILINE)

    assert [line.strip() for line in published] == ['- "127.0.0.1:${FLUFFLE_UI_PORT:-15672}:15672"']
    assert "network_mode" not in TEXT


def test_every_service_but_the_broker_runs_on_the_internal_network_alone() -> None:
    networks = {name: re.findall(r"networks: (.*)", text) for name, text in SERVICES.items()}

    assert networks.pop("rabbitmq") == ["[federation, ui]"]
    assert set(networks) == {"initial-model", "aggregator", "standby", "evaluator", "worker"}
    assert not any(networks.values())
    assert "networks: [federation]" in block("x-program: &program", 0)
    assert "internal: true" in block("networks:", 0)


def test_every_service_drops_all_rights_and_starts_again_after_a_failure() -> None:
    programs = {
        name
        for name, text in SERVICES.items()
        if "<<: *program" in text or ("<<: *aggregator" in text and "<<: *program" in AGGREGATOR)
    }

    assert programs == SERVICES.keys() - {"rabbitmq"}
    for text in (SERVICES["rabbitmq"], block("x-program: &program", 0)):
        assert "cap_drop: [ALL]" in text
        assert "read_only: true" in text
        assert '"no-new-privileges:true"' in text
        assert "restart: " in text
    assert "\n    user: rabbitmq" in SERVICES["rabbitmq"]
    assert "healthcheck:" in SERVICES["rabbitmq"]


@pytest.mark.parametrize("user", ["aggregator", "evaluator", "worker"])
def test_a_password_comes_from_env_and_compose_says_how_to_make_it(user: str) -> None:
    variable = f"FLUFFLE_{user.upper()}_PASSWORD"
    url = f"amqp://{user}:${{{variable}:?run `make secrets` first}}@rabbitmq:5672/%2F"

    assert re.findall(rf"FLUFFLE_BROKER_URL: (amqp://{user}:.*)", TEXT) == [url]
    assert TEXT.count("amqp://") == 3


def test_every_variable_of_a_container_is_a_setting_of_what_runs_in_it() -> None:
    for text, settings in (
        (SHARED, SharedSettings),
        (AGGREGATOR + SERVICES["standby"], AggregatorSettings),
        (SERVICES["evaluator"], EvaluatorSettings),
        (SERVICES["worker"], WorkerSettings),
    ):
        assert variables(text) <= {env_name(name) for name in settings.model_fields}


def test_every_setting_of_the_aggregator_can_be_given_in_env() -> None:
    # Files would have to be mounted, and the initial model is built by another container.
    elsewhere = {"broker_password_file", "broker_ca_file", "broker_cert_file", "broker_key_file"} | {
        "task",
        "seed",
    }

    wanted = {env_name(name) for name in AggregatorSettings.model_fields if name not in elsewhere}
    assert wanted - variables(SHARED + AGGREGATOR) == set()


def test_no_secret_can_reach_an_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not [rule for rule in rules if rule.startswith("!.")]
    assert rules.index("broker_config/generated") > rules.index("!broker_config")
