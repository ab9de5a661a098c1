"""Model files: what was written comes back, in its order; what is no model file is refused."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fluffle.errors import ConfigError
from fluffle.model import FLOATS, INTEGERS
from fluffle.safetensors_file import read_model, write_model

DTYPES = [np.dtype(name) for name in (*FLOATS, *INTEGERS)]
TENSORS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(np.uint8, arrays.array_shapes(min_dims=0, min_side=0, max_side=4)).map(
        lambda counts: counts.astype(dtype)
    )
)


def some_weights() -> dict[str, NDArray[np.generic]]:
    return {
        "z/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a/bias": np.array([1.5, -2], ml_dtypes.bfloat16),
        "m/count": np.array(7, np.int64),
    }


@given(weights=st.dictionaries(st.text(max_size=8), TENSORS, max_size=6))
def test_names_order_dtypes_shapes_and_values_come_back(
    weights: dict[str, NDArray[np.generic]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("models") / "model.safetensors"

    write_model(path, weights)
    found = read_model(path)

    assert list(found) == list(weights)
    for name, array in weights.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_an_array_that_is_not_contiguous_is_written_as_it_reads(tmp_path: Path) -> None:
    backwards = np.arange(12).reshape(3, 4).T[::-1]

    write_model(tmp_path / "model.safetensors", {"w": backwards})

    assert np.array_equal(read_model(tmp_path / "model.safetensors")["w"], backwards)


def test_any_other_program_can_read_the_tensors_and_the_text(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    write_model(path, some_weights(), {"fluffle.version": "17"})

    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    header = json.loads(path.read_bytes()[8 : 8 + length])
    assert header["__metadata__"]["fluffle.version"] == "17"
    assert header["a/bias"]["dtype"] == "BF16"


def test_a_file_of_another_program_is_read_in_the_order_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"small": np.zeros(2, np.int8), "large": np.ones(3, np.float64)}, path)

    found = read_model(path)

    assert list(found) == ["large", "small"]


def test_a_new_file_replaces_the_old_one_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_model(path, some_weights())

    write_model(path, {"w": np.ones(3, np.float32)})

    assert list(read_model(path)) == ["w"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()

    with pytest.raises(ConfigError, match=r"cannot write .*model\.safetensors"):
        write_model(tmp_path / "model.safetensors", some_weights())
    with pytest.raises(ConfigError, match="No such file or directory"):
        write_model(tmp_path / "nowhere" / "model.safetensors", some_weights())

    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no model file .*nothing\.safetensors"):
        read_model(tmp_path / "nothing.safetensors")


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the model file"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip file", b"\xff" * 100, b"\x02" + bytes(7) + b"[]"]
)
def test_a_file_in_another_format_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match="is no safetensors file"):
        read_model(path)
