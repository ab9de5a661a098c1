"""docker-compose.yml, read as text (no YAML parser is a dependency): what must not slip in or out of it."""

import re
from pathlib import Path

import pytest

from fluffle.settings import SharedSettings, env_name
from fluffle_aggregator.settings import AggregatorSettings
from fluffle_cli.dashboard.program import DashboardSettings
from fluffle_helper.settings import HelperSettings
from fluffle_worker.settings import EvaluatorSettings, WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE, CLUSTER, TLS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("docker-compose.yml", "docker-compose.cluster.yml", "docker-compose.tls.yml")
)
TEXT = "\n".join(line for line in COMPOSE.splitlines() if not line.lstrip().startswith("#"))


def block(start: str, indent: int) -> str:
    """Return the lines below `start` that are indented deeper than it."""
    rest = TEXT.partition(f"\n{start}\n")[2].splitlines()
    deeper = " " * (indent + 1)
    end = next((n for n, line in enumerate(rest) if line and not line.startswith(deeper)), len(rest))
    return "\n".join(rest[:end])


SHARED = block("x-shared: &shared", 0)
AGGREGATOR = block("x-aggregator: &aggregator", 0)
WORKER = block("x-worker: &worker", 0)
WATCHER = block("x-watcher: &watcher", 0)
WATCHERS = ["prometheus", "grafana"]
METRICS = block("x-metrics: &metrics", 0)
WORKERS = [f"worker-{number}" for number in range(4)]
HELPER = block("x-helper: &helper", 0)
HELPERS = [f"helper-{number}" for number in (1, 2, 3)]
SERVICES = {
    name: block(f"  {name}:", 2)
    for name in re.findall(r"^  ([a-z0-9-]+):$", block("services:", 0), re.MULTILINE)
}


def variables(text: str) -> set[str]:
    return set(re.findall(r"^ +(FLUFFLE_[A-Z_]+):", text, re.MULTILINE))


def test_the_only_published_ports_are_pages_on_this_machine() -> None:
    published = re.findall(r"^ +ports:\n((?: +- .*\n?)+)", TEXT, re.MULTILINE)

    assert [line.strip() for line in published] == [
        '- "127.0.0.1:${FLUFFLE_UI_PORT:-15672}:15672"',
        '- "127.0.0.1:${FLUFFLE_DASHBOARD_PORT:-8089}:${FLUFFLE_DASHBOARD_PORT:-8089}"',
        '- "127.0.0.1:${FLUFFLE_PROMETHEUS_PORT:-9090}:9090"',
        '- "127.0.0.1:${FLUFFLE_GRAFANA_PORT:-3000}:3000"',
    ]
    assert "network_mode" not in TEXT


def test_every_service_but_the_broker_and_who_watches_runs_on_the_internal_network_alone() -> None:
    networks = {name: re.findall(r"networks: (.*)", text) for name, text in SERVICES.items()}

    assert networks.pop("rabbitmq") == ["{ federation: { aliases: [brokers] }, ui: }"]
    assert networks.pop("dashboard") == ["[federation, ui]"]
    assert networks.pop("evaluator") == ["{ federation: { aliases: [evaluators] } }"]
    assert set(networks) == {"initial-model", "aggregator", "standby", *WATCHERS, *WORKERS, *HELPERS}
    assert not any(networks.values())
    assert "networks: [federation]" in block("x-program: &program", 0)
    assert "networks: { federation: { aliases: [aggregators] } }" in AGGREGATOR
    assert "networks: { federation: { aliases: [workers] } }" in WORKER
    assert "networks: { federation: { aliases: [helpers] } }" in HELPER


def test_each_helper_has_its_own_key_and_ledger_and_no_other_ones_and_is_started_on_demand() -> None:
    assert "profiles: [secure]" in HELPER
    for name in HELPERS:
        assert f"FLUFFLE_SECURE_KEY: /own/{name}.key\n" in SERVICES[name]
        sources = re.findall(r"source: (\$.*)", SERVICES[name])
        assert sources == [f"${{FLUFFLE_SECURE_FOLDER:-./secure}}/{name}"]
    assert "read_only: true" in block("x-registry: &registry", 0)


def test_who_watches_is_started_on_demand_and_is_given_no_password() -> None:
    for name in WATCHERS:
        assert "<<: *watcher" in SERVICES[name]
        assert "secrets" not in SERVICES[name]
    assert "profiles: [monitoring]" in WATCHER


def test_every_image_that_is_not_built_here_has_a_version() -> None:
    images = set(re.findall(r"^ +image: (.*)", COMPOSE + CLUSTER + TLS, re.MULTILINE))

    fetched = images - {"fluffle-aggregator", "fluffle-worker"}
    assert len(fetched) == 3
    assert all(re.search(r":v?\d", image) for image in fetched)


def test_metrics_are_served_only_when_somebody_watches() -> None:
    assert METRICS.split() == [
        "FLUFFLE_METRICS_PORT:",
        "${COMPOSE_PROFILES:+9464}",
        "FLUFFLE_METRICS_HOST:",
        "0.0.0.0",
    ]
    assert TEXT.count("<<: [*shared, *metrics]") == 4
    asked = (ROOT / "monitoring" / "prometheus.yml").read_text(encoding="utf-8")
    for kind in ("aggregators", "workers", "evaluators", "helpers"):
        assert f"[{{ names: [{kind}], type: A, port: 9464, refresh_interval: 15s }}]" in asked


def test_every_node_of_a_cluster_is_asked_since_only_a_queues_leader_tells_of_it() -> None:
    asked = (ROOT / "monitoring" / "prometheus.yml").read_text(encoding="utf-8")
    assert asked.count("[{ names: [brokers], type: A, port: 15692, refresh_interval: 15s }]") == 2

    networks = re.findall(r"^    networks: (.*)", CLUSTER, re.MULTILINE)
    assert networks == ["!override { federation: { aliases: [brokers] } }"] * 2


def test_no_command_of_the_docs_makes_the_broker_anew() -> None:
    docs = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    commands = re.findall(r"docker compose (.*)", (ROOT / "README.md").read_text(encoding="utf-8") + docs)

    # `run` starts what a service depends on, as this command's settings say; the next one forgets `-f`.
    assert not [each for each in commands if each.startswith("run ") and "--no-deps" not in each]
    assert not [each for each in commands if each.startswith("-f ")]


def test_a_watched_broker_has_one_plugin_more() -> None:
    plugins, watched = (
        (ROOT / "broker_config" / name).read_text(encoding="utf-8")
        for name in ("enabled_plugins", "enabled_plugins.monitored")
    )

    assert watched == plugins.replace("].", ",rabbitmq_prometheus].")
    assert '"./broker_config/enabled_plugins${COMPOSE_PROFILES:+.monitored}"' in SERVICES["rabbitmq"]
    assert "internal: true" in block("networks:", 0)


def test_every_service_drops_all_rights_and_starts_again_after_a_failure() -> None:
    programs = {
        name
        for name, text in SERVICES.items()
        if "<<: *program" in text
        or ("<<: *aggregator" in text and "<<: *program" in AGGREGATOR)
        or ("<<: *worker" in text and "<<: *program" in WORKER)
        or ("<<: *helper" in text and "<<: *program" in HELPER)
    }

    assert programs == SERVICES.keys() - {"rabbitmq", *WATCHERS}
    for text in (SERVICES["rabbitmq"], block("x-program: &program", 0), WATCHER):
        assert "cap_drop: [ALL]" in text
        assert "read_only: true" in text
        assert '"no-new-privileges:true"' in text
        assert "restart: " in text
    assert "\n    user: rabbitmq" in SERVICES["rabbitmq"]
    assert "healthcheck:" in SERVICES["rabbitmq"]


@pytest.mark.parametrize("user", ["aggregator", "evaluator", "monitor", *HELPERS, *WORKERS])
def test_each_part_is_given_the_password_of_its_own_user_and_no_other(user: str) -> None:
    text = AGGREGATOR if user == "aggregator" else SERVICES["dashboard" if user == "monitor" else user]

    assert re.findall("FLUFFLE_BROKER_URL: (.*)", text) == [f"amqp://{user}@rabbitmq:5672/%2F"]
    assert re.findall("secrets: (.*)", text) == [f"[{{ source: {user}, target: password }}]"]
    assert f"  {user}: {{ file: ./.secrets/{user} }}" in block("secrets:", 0)
    assert "FLUFFLE_BROKER_PASSWORD_FILE: /run/secrets/password" in SHARED


def test_a_log_line_is_json_unless_asked_otherwise_since_no_container_has_a_terminal() -> None:
    assert SharedSettings.model_fields["log_format"].default == "auto"
    assert "\n  FLUFFLE_LOG_FORMAT:\n" in SHARED
    everything = COMPOSE + CLUSTER + TLS
    assert everything.count("FLUFFLE_LOG_FORMAT") == 1
    assert "tty:" not in everything


def test_no_password_stands_in_an_environment_or_an_url() -> None:
    assert "_PASSWORD}" not in TEXT
    assert "_PASSWORD:" not in TEXT
    assert not re.findall(r"://[^/@\s]*:[^/@\s]*@", TEXT)
    assert TEXT.count("secrets: [") == 3 + len(HELPERS) + len(WORKERS)


def test_compose_says_how_to_make_the_passwords() -> None:
    assert "FLUFFLE_FEDERATION: ${FLUFFLE_FEDERATION:?run `make secrets` first}" in SHARED


@pytest.mark.parametrize("number", range(4))
def test_a_worker_has_the_name_of_its_user_and_a_site_of_its_own(number: int) -> None:
    text = SERVICES[f"worker-{number}"]

    assert f"FLUFFLE_NAME: worker-{number}\n" in text
    assert f"FLUFFLE_SITE: {number}\n" in text


def test_every_variable_of_a_container_is_a_setting_of_what_runs_in_it() -> None:
    for text, settings in (
        (SHARED, SharedSettings),
        (METRICS + "\n" + AGGREGATOR + SERVICES["standby"], AggregatorSettings),
        (METRICS + "\n" + SERVICES["evaluator"], EvaluatorSettings),
        (SERVICES["dashboard"], DashboardSettings),
        (METRICS + "\n" + HELPER + "\n" + SERVICES["helper-1"], HelperSettings),
        (METRICS + "\n" + WORKER + "\n" + SERVICES["worker-0"], WorkerSettings),
    ):
        assert variables(text) <= {env_name(name) for name in settings.model_fields}


def test_every_setting_of_the_aggregator_can_be_given_in_env() -> None:
    # Files and data would have to be mounted, and the initial model is built by another container.
    elsewhere = {"broker_password_file", "broker_ca_file", "broker_cert_file", "broker_key_file"} | {
        *("config", "data", "label"),
        *("task", "seed"),
    }

    wanted = {env_name(name) for name in AggregatorSettings.model_fields if name not in elsewhere}
    assert wanted - variables(SHARED + "\n" + METRICS + AGGREGATOR) == set()


def test_no_secret_can_reach_an_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()

    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not [rule for rule in rules if rule.startswith("!.")]
    assert rules.index("broker_config/generated") > rules.index("!broker_config")


def test_tls_for_other_machines_is_published_where_it_is_said_and_knows_no_authoritys_key() -> None:
    ports = re.findall(r"^ +ports:\n((?: +- .*\n?)+)", TLS, re.MULTILINE)

    assert len(ports) == 1
    assert re.fullmatch(r'\s*- "\$\{FLUFFLE_TLS_ADDRESS:\?[^}]+\}:5671:5671"\s*', ports[0])
    assert re.findall(r"source: \./certs/([a-z.]+)", TLS) == ["ca.pem", "server.pem", "server.key"]


def test_the_container_speaks_tls_as_we_advise_but_for_passwords() -> None:
    def settings(name: str) -> set[str]:
        lines = (ROOT / "broker_config" / name).read_text(encoding="utf-8").splitlines()
        return {line for line in lines if line and not line.startswith("#")}

    advised, container = settings("tls.conf"), settings("container-tls.conf")

    assert container - advised == {"ssl_options.fail_if_no_peer_cert = false", "auth_mechanisms.2 = EXTERNAL"}
    assert advised - container == {
        "listeners.tcp = none",
        "ssl_options.fail_if_no_peer_cert = true",
        "auth_mechanisms.1 = EXTERNAL",
    }


def test_each_image_of_ours_is_built_by_one_service_and_pulled_by_none() -> None:
    built = re.findall(r"build: \{ target: (\w+) \}", TEXT)

    assert sorted(built) == ["aggregator", "worker"]
    assert "  pull_policy: never" in block("x-program: &program", 0).splitlines()
    # Whoever starts an aggregator starts these two, so that no part of the federation lacks its image.
    assert "build: { target: worker }" in SERVICES["initial-model"]
    assert "build: { target: aggregator }" in SERVICES["aggregator"]


def test_group_0_may_write_in_an_image_what_the_images_user_may() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    folders = re.findall(r"install -d -o fluffle (.*)", dockerfile)
    assert folders == ["-g 0 -m 775 /models", "-g 0 -m 770 /spool"]
    assert "--uid 10001 --gid 0" in dockerfile
