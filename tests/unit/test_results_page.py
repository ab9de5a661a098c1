"""A page of results gets the newest tables, and keeps what was not measured again."""

import json
from pathlib import Path

import pytest

from benchmarks import page

MACHINE = dict.fromkeys(("cpu", "cores", "memory_gib", "kernel", "python", "numpy", "pika"), "x") | {
    "rabbitmq": ""
}
PAGE = """# Speeds

<!-- results: speeds -->

| scene | strategy | s |
| --- | --- | --- |
| demo | fedavg | 14 |
| sixteen | fedavg | 52 |

*An older machine.*

<!-- end -->
"""


def filled(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]]) -> list[str]:
    monkeypatch.setattr(page, "RESULTS", folder)
    shown = list(rows[0])
    lines = [{"row": row, "run": "now", "machine": MACHINE, "shown": shown} for row in rows]
    (folder / "speeds.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "speeds.md").write_text(PAGE)
    page.fill([folder / "speeds.md"])
    return [line for line in (folder / "speeds.md").read_text().splitlines() if line.startswith("| ")][2:]


def test_the_rows_of_a_scene_that_was_not_played_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = [
        {"scene": "demo", "strategy": "fedavg", "s": 15},
        {"scene": "mars", "strategy": "reuse", "s": 3},
    ]

    found = filled(tmp_path, monkeypatch, played)

    assert found == ["| sixteen | fedavg | 52 |", "| demo | fedavg | 15 |", "| mars | reuse | 3 |"]


def test_a_table_with_other_columns_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled(tmp_path, monkeypatch, [{"scene": "demo", "s": 15}]) == ["| demo | 15 |"]
