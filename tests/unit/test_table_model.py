"""What a model of a table takes is a part of its layout: compared, sent, written to files, in the digest."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import a_layout, a_version
from messages import rewritten

from fluffle.errors import LayoutError, WireError
from fluffle.model import Layout
from fluffle.record_wire import decode_version, encode_version
from fluffle.safetensors_file import read_layout, write_model
from fluffle.table_model import MAX_TABLE_CLASSES, TableModel

TABLE = TableModel(("age", "bmi"), "outcome", ("healthy", "ill"), (8, 4), True, 0.5)
NUMBER = TableModel(("age", "bmi"), "months", None, (8,), True, 0.0, 20.5, 3.25)


def of(table: TableModel | None) -> Layout:
    return replace(a_layout(), table=table)


@pytest.mark.parametrize("table", [TABLE, NUMBER])
def test_a_record_and_a_model_file_say_what_a_model_takes(table: TableModel, tmp_path: Path) -> None:
    layout = of(table)

    sent = decode_version(encode_version(replace(a_version(), layout=layout)))
    write_model(tmp_path / "m.safetensors", {"dense/kernel": np.zeros(4, np.float32)}, layout=layout)
    read = read_layout(tmp_path / "m.safetensors")

    assert sent.layout == read == layout
    assert sent.layout.digest == read.digest == layout.digest


def test_models_with_equal_tensors_and_other_columns_have_other_digests() -> None:
    others = [
        replace(TABLE, columns=("bmi", "age")),
        replace(TABLE, label="result"),
        replace(TABLE, classes=("ill", "healthy")),
        replace(TABLE, dropout=0.25),
        NUMBER,
        None,
    ]

    digests = {of(table).digest for table in [TABLE, *others]}

    assert len(digests) == 1 + len(others)
    # As before there were models of tables.
    assert of(None).digest == a_layout().digest == "0d4750771ad0ed5b"


def test_a_record_of_before_there_were_models_of_tables_is_read() -> None:
    tensors = [[spec.name, list(spec.shape), spec.dtype, spec.group] for spec in a_layout().tensors]
    body = rewritten(encode_version(a_version()), layout=[tensors, None])

    assert decode_version(body).layout == a_layout()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(TABLE, columns=("age", "weight")), "takes 'bmi', and this one does not, which has 'weight'"),
        (replace(TABLE, columns=("age", "bmi", "id")), "does not take 'id', and this one does"),
        (replace(TABLE, columns=("bmi", "age")), "takes 'age' as its column 0, where this one takes 'bmi'"),
        (replace(TABLE, label="result"), "tells the column 'outcome', this one 'result'"),
        (replace(TABLE, classes=("a", "b", "c")), "tells 2 classes ('healthy', 'ill'), this one 3 classes"),
        (replace(NUMBER, label="outcome"), "tells 2 classes ('healthy', 'ill'), this one a number"),
        (replace(TABLE, dropout=0.0), "dropout 0.5, inputs scaled by the survey, this one hidden units 8, 4"),
        (
            replace(TABLE, surveyed=False),
            "inputs scaled by the survey, this one hidden units 8, 4, dropout 0.5, ",
        ),
        (None, "the federation's model is of a table, this one is of no table"),
    ],
)
def test_a_difference_is_named(other: TableModel | None, said: str) -> None:
    with pytest.raises(LayoutError) as refused:
        of(TABLE).require(of(other))

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "label", "classes", "said"),
    [
        (("age", "age"), "outcome", None, "'age' is named more than once"),
        (("age",), "age", None, "'age' is named more than once"),
        ((), "outcome", None, "at least 1 column"),
        (("age",), "outcome", ("ill",), "at least 2 classes"),
        (("age",), "outcome", ("ill", "ill"), "at least 2 classes"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    columns: tuple[str, ...], label: str, classes: tuple[str, ...] | None, said: str
) -> None:
    with pytest.raises(LayoutError, match=said):
        TableModel(columns, label, classes)


@pytest.mark.parametrize(
    "found",
    [
        [["age", "age"], "outcome", None, [], 0.0, 0.0, 1.0],
        [["age"], "outcome", [str(each) for each in range(MAX_TABLE_CLASSES + 1)], [], 0.0, 0.0, 1.0],
        [["age\n"], "outcome", None, [], 0.0, 0.0, 1.0],
        [["age"], "outcome", None, [0], 0.0, 0.0, 1.0],
        [["age"], "outcome", None, [], 1.0, 0.0, 1.0],
        [["age"], "outcome", None, [], 0.0, 0.0, 0.0],
        [["age"], "outcome", None, [], 0.0, float("nan"), 1.0],
        [["age"], "outcome"],
    ],
)
def test_a_record_with_a_table_that_cannot_be_is_refused(found: list[object]) -> None:
    tensors = [[spec.name, list(spec.shape), spec.dtype, spec.group] for spec in a_layout().tensors]
    body = rewritten(encode_version(a_version()), layout=[tensors, None, found])

    with pytest.raises(WireError, match=r"field layout\.table"):
        decode_version(body)
