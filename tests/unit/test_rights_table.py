"""The table of rights that people read says what `fluffle.rights` grants."""

from pathlib import Path

from typer.testing import CliRunner

from fluffle_cli.main import app
from fluffle_cli.rights_table import help_text, markdown_table

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_in_the_broker_configs_readme_is_the_generated_one() -> None:
    assert markdown_table() in (ROOT / "broker_config" / "README.md").read_text(encoding="utf-8")


def test_the_table_names_what_each_role_may_read() -> None:
    rows = {
        line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in markdown_table().splitlines()
    }

    assert "`F.models`, `F.records`" in rows["worker"][3]
    assert rows["monitor"][3] == "`F.events`, `F.events.ANYTHING`, `F.records`"
    assert rows["aggregator"][1:4] == ["`F.*`"] * 3
    assert rows["operator"][1:4] == ["everything"] * 3


def test_the_help_of_user_add_has_the_same_rights() -> None:
    shown = CliRunner().invoke(app, ["user", "add", "--help"], env={"COLUMNS": "200"}).output

    for paragraph in help_text().split("\n\n"):
        assert paragraph in " ".join(shown.split())
