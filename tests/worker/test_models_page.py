"""docs/models.md: the table of Keras features names those that are tested, and no others."""

from pathlib import Path

from features.table import FEATURES

PAGE = Path(__file__).parents[2] / "docs/models.md"


def features_in_the_page() -> list[str]:
    section = PAGE.read_text().partition("\n## Features of Keras\n")[2]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_table_in_the_page_has_a_row_for_each_tested_feature_in_the_same_order() -> None:
    assert features_in_the_page() == list(FEATURES)


def test_the_table_has_at_least_25_features() -> None:
    assert len(FEATURES) >= 25
