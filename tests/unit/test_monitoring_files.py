"""The files in monitoring/, by the tools that read them."""

import json
import re
import subprocess
from pathlib import Path

from fluffle.events import ROLES
from fluffle.metrics.meters import Meter

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana" / "fluffle.json").read_text(encoding="utf-8"))
EXPRESSIONS = [
    target["expr"].replace("$federation", "digits").replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


def promtool(*arguments: str, said: str = "") -> None:
    """Run promtool, which must find nothing to complain about."""
    result = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, input=said, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", "alerts.yml")


def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    promtool("test", "rules", "alerts_test.yml")
    alerts = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text(encoding="utf-8"))

    tested = (FOLDER / "alerts_test.yml").read_text(encoding="utf-8")
    assert len(alerts) == 5
    assert all(f"alertname: {alert}\n        exp_alerts:\n" in tested for alert in alerts)


def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    rules = [{"record": f"test:panel:{number}", "expr": expr} for number, expr in enumerate(EXPRESSIONS)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")

    assert len(rules) > 20
    promtool("check", "rules", str(file))


def test_rules_and_dashboard_name_only_metrics_that_the_parts_serve() -> None:
    served = set()
    for role in ROLES:
        meter = Meter(role, "digits", "one")
        served |= {name for family in meter.registry.collect() for name in names_of(family.name, family.type)}

    asked = " ".join([*EXPRESSIONS, (FOLDER / "alerts.yml").read_text(encoding="utf-8")])
    names = set(re.findall(r"\bfluffle_\w+", asked))
    assert len(names) > 10
    assert names - served == set()


def test_the_dashboard_cannot_be_edited() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")

    assert not DASHBOARD["editable"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {"prometheus"}
    assert "uid: prometheus," in (FOLDER / "grafana" / "datasource.yml").read_text(encoding="utf-8")
    assert "GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer" in compose
    assert 'GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION: "true"' in compose


def names_of(family: str, kind: str) -> list[str]:
    """Return what the samples of a family are called."""
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return [family + ending for ending in endings.get(kind, [""])]
