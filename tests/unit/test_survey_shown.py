"""How a survey is shown: tables, JSON, a page, its progress while it is open, and a site's drift."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import a_version
from federation_states import QUEUES, a_state, a_view, told
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from typer.testing import CliRunner

from fluffle.events import Answered
from fluffle.survey import statistics_of
from fluffle.survey.messages import Survey
from fluffle.survey.result import SurveyResult, result_of
from fluffle_cli.data_check import command
from fluffle_cli.data_check.drift import drift_of, drift_rows
from fluffle_cli.main import app
from fluffle_cli.plain_json import as_text
from fluffle_cli.survey.as_json import as_json, result_in
from fluffle_cli.survey.page import page
from fluffle_cli.survey.terminal import class_rows, column_row, progress_in_words
from fluffle_cli.watching.as_json import as_json as view_as_json
from fluffle_cli.watching.findings import findings_of
from fluffle_cli.watching.terminal import plain_line
from fluffle_cli.watching.view import Version
from fluffle_worker.keras_task import KerasTask

Floats = NDArray[np.float64]


def tumours() -> tuple[Floats, NDArray[np.int64], list[str]]:
    found = load_breast_cancer()
    return found.data, found.target, list(found.feature_names)


def a_result(*, min_count: int = 10) -> SurveyResult:
    x, y, names = tumours()
    return result_of(statistics_of(x, y, names=names, classes=2), sites=3, min_count=min_count)


def ended() -> Survey:
    return Survey(3, ("a", "b", "c"), result=a_result())


def test_what_is_written_as_json_is_read_back_with_every_bit() -> None:
    written = as_text({"federation": "ward-7", **as_json(ended())})

    assert result_in(written) == ended().result
    assert json.loads(written)["is_open"] is False


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"result": null}', '{"result": {"sites": 1}}', '{"result": 3}']
)
def test_a_file_that_holds_no_survey_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "survey.json"
    path.write_text(text)

    found = CliRunner().invoke(app, ["data", "check", "--task", "digits", "--survey-file", str(path)])

    assert found.exit_code == 2 or "--survey-file" in str(found.exception)


def test_tables_show_the_columns_and_few_for_what_is_not_published() -> None:
    x = np.c_[np.arange(100.0), np.full(100, np.nan)]
    x[:3, 1] = 1
    result = result_of(
        statistics_of(x, np.repeat([0, 1], [96, 4]), names=["<b>", "rare"], classes=2), sites=1, min_count=5
    )

    assert column_row(result["<b>"])[:4] == ["<b>", "100", "0", "49.5000"]
    assert set(column_row(result["rare"])[1:]) == {"few"}
    assert class_rows(result) == [["0", "few", "few"], ["1", "few", "few"]]
    drawn = page("ward-7", result)
    assert "<b>" not in drawn
    assert "Only one site has answered" in drawn
    assert "<script" not in drawn


def test_a_page_has_a_picture_of_each_column() -> None:
    drawn = page("ward-7", a_result())

    assert drawn.count("<figure>") == 30
    assert "worst concave points" in drawn
    assert "569" in drawn


def test_while_a_survey_is_open_everybody_who_watches_sees_how_many_have_answered() -> None:
    opened = replace(a_version(), survey=Survey(4, ("a",)))
    state = a_state()
    state.read(Version.of(opened))
    told(state, Answered("b", 2, 4), Answered("c", 3, 4))
    view = state.view(1_000.0)

    assert [each.says for each in findings_of(view)][:1] == [
        "The survey is open: 3 of 4 workers have answered."
    ]
    assert "survey: 3 of 4 workers have answered" in plain_line(view)
    assert view_as_json(view)["survey"] == {"answered": 3, "wanted": 4, "is_open": True}
    assert progress_in_words(Survey(0, ("a",))) == "The survey is open: 1 worker has answered: a."

    state.read(Version.of(replace(a_version(1), survey=ended())))
    assert not any(each.kind == "survey" for each in findings_of(state.view(1_000.0)))
    assert view_as_json(a_view(a_version(), queues=QUEUES))["survey"] is None


def test_a_site_whose_values_are_those_of_all_has_no_drift_and_one_with_another_unit_has() -> None:
    x, y, names = tumours()
    survey = a_result()
    other_unit = x[::3] * np.where(np.arange(30) == 3, 25.4, 1.0)

    same = drift_of(statistics_of(x, y, names=names, classes=2), survey)
    part = drift_of(statistics_of(other_unit, np.zeros(len(other_unit), int), names=names, classes=2), survey)

    assert same.classes == 0
    assert all(distance < 0.02 for _, distance in same.columns)
    assert ["column mean area", "none found"] in drift_rows(same)
    assert drift_rows(part)[0] == ["classes", f"{y.mean():.2f}"]
    assert drift_rows(part)[1] == ["column mean area", "at least 0.90"]
    assert all(distance < 0.2 for name, distance in part.columns if name != "mean area")


@given(
    st.lists(st.integers(0, 12), min_size=20, max_size=200),
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
)
def test_the_drift_of_a_column_is_never_more_than_the_distance_of_both_distributions(
    of_all: list[int], own: list[int]
) -> None:
    survey = result_of(statistics_of(np.array(of_all)), sites=2, min_count=1)

    [(_, distance)] = drift_of(statistics_of(np.array(own)), survey).columns

    shares = [np.bincount(each, minlength=13) / len(each) for each in (of_all, own)]
    assert -1e-9 <= distance <= np.abs(shares[0] - shares[1]).sum() / 2 + 1e-9


@pytest.mark.parametrize(("first_label", "distance"), [(0, "0.03"), (1, "0.60")])
def test_data_check_shows_the_drift_of_a_site_with_columns_and_classes_that_only_one_side_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_label: int, distance: str
) -> None:
    x, y, _ = tumours()
    y = y + first_label

    def no_model() -> Any:
        raise AssertionError("a report on data needs no model")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_task", lambda _: KerasTask(no_model, lambda _site: (x[::3], y[::3])))
    Path("survey.json").write_text(as_text(as_json(ended())))
    found = CliRunner().invoke(app, ["data", "check", "--task", "mine:task", "--survey-file", "survey.json"])

    assert found.exit_code == 0, found.output
    told = " ".join(found.output.split())
    # It has numbers where the survey has names.
    assert "Drift of this site's 190 rows against 569 rows of 3 sites; the columns differ" in told
    assert f"classes │ {distance}" in told
    assert "total variation distance" in Path("data-check.html").read_text()
