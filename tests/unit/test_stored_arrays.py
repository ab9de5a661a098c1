"""NPZ files and folders of images as data sets, and what is refused of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluffle.errors import ConfigError, TaskError
from fluffle.task import Site
from fluffle_worker.data import open_dataset

X = np.random.default_rng(0).random((100, 4, 3))
Y = np.arange(100)


def refused(folder: Path, kind: type[Exception] = TaskError, **wanted: Any) -> str:
    with pytest.raises(kind) as error:
        open_dataset(folder, **wanted).arrays()
    return str(error.value).replace(str(folder), "DATA")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_arrays_are_read_from_several_files_compressed_or_not_and_each_row_at_one_site(
    tmp_path: Path, count: int
) -> None:
    np.savez(tmp_path / "a.npz", x=X[:60], y=Y[:60])
    np.savez_compressed(tmp_path / "b.npz", x=X[60:], y=Y[60:])

    sites = [open_dataset(tmp_path, shard=Site(index=index, count=count)).arrays() for index in range(count)]

    x, y = (np.concatenate(each) for each in zip(*sites, strict=True))
    order = np.argsort(y)
    assert (x.dtype, y.dtype) == (np.dtype("float32"), np.dtype("int64"))
    np.testing.assert_array_equal(y[order], Y)
    np.testing.assert_allclose(x[order], X, rtol=1e-6)


def test_other_names_of_arrays_and_targets_and_no_label_at_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", waves=X[:, 0], dose=np.float64(Y) / 2)

    x, y = open_dataset(tmp_path, columns=["waves"], label="dose").arrays()
    only = open_dataset(tmp_path, columns=["waves"]).arrays()

    assert (x.shape, y.dtype, y[1]) == ((100, 3), np.dtype("float32"), 0.5)
    assert len(only) == 1


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": X}, "DATA/a.npz has no array 'x': it has 'z'; name the array of inputs with columns="),
        (
            {"x": X, "y": Y[:3]},
            "the array 'x' has the shape (100, 4, 3) and 'y' (3,), and both must have one",
        ),
        ({"x": np.array(["a"])}, "the array 'x' of DATA/a.npz holds <U1 where numbers are expected"),
        ({"x": np.asfortranarray(X[:, 0])}, "the array 'x' of DATA/a.npz is stored column by column"),
        ({"x": X[:0], "y": Y[:0]}, "DATA has no row for site 0 of 1"),
    ],
)
def test_arrays_that_cannot_be_used_are_named_with_their_file(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)

    assert said in refused(tmp_path)


def test_a_damaged_archive_and_arrays_that_differ_among_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    whole = (tmp_path / "a.npz").read_bytes()
    np.savez(tmp_path / "b.npz", x=X[:, :2], y=Y)

    assert "DATA/b.npz {'x': (2, 3), 'y': ()}: write all files in the same way" in refused(tmp_path)
    (tmp_path / "b.npz").unlink()
    (tmp_path / "a.npz").write_bytes(whole[:1000] + bytes(50) + whole[1050:])
    assert "DATA/a.npz is no readable NPZ file: write it again (Bad CRC-32" in refused(tmp_path)
    (tmp_path / "a.npz").write_bytes(whole[:1000])
    assert "DATA/a.npz is no readable NPZ file: write it again" in refused(tmp_path)
    assert "leave classes= and other columns out" in refused(tmp_path, ConfigError, classes=["a", "b"])


def write_images(folder: Path, count: int = 5) -> None:
    for number, name in enumerate(["cat", "dog"]):
        (folder / name).mkdir(parents=True)
        for at in range(count):
            Image.new("RGB", (6, 4), (100 * number, at, 7)).save(folder / name / f"{at}.png")


def test_a_folder_of_images_is_a_class_and_pixels_are_numbers_from_0_to_255(tmp_path: Path) -> None:
    write_images(tmp_path)

    dataset = open_dataset(tmp_path)
    x, y = dataset.arrays()

    assert (dataset.classes, dataset.features, dataset.label) == (("cat", "dog"), ("image",), "class")
    assert (x.shape, x.dtype) == ((10, 4, 6, 3), np.dtype("float32"))
    assert x[:, 0, 0].tolist() == [[100 * number, at, 7] for number in (0, 1) for at in range(5)]
    assert y.tolist() == [0] * 5 + [1] * 5
    assert open_dataset(tmp_path, classes=["dog", "cat"]).arrays()[1].tolist() == [1] * 5 + [0] * 5
    assert open_dataset(tmp_path, image_size=(8, 9)).arrays()[0].shape == (10, 8, 9, 3)


def test_each_site_has_images_of_each_class(tmp_path: Path) -> None:
    write_images(tmp_path)

    sites = [open_dataset(tmp_path, shard=Site(index=at, count=3)).arrays()[1].tolist() for at in range(3)]

    assert sites == [[0, 0, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_a_grey_photograph_has_one_channel_and_stands_the_right_way_up(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    image = Image.new("L", (6, 4))
    image.putpixel((5, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "cat" / "a.tif", exif=exif)

    [x, _] = open_dataset(tmp_path).arrays()

    assert x.shape == (1, 6, 4, 1)
    assert x[0, 5, 3, 0] == 255


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    write_images(tmp_path)

    assert "DATA has the folder 'cat', which is none of the classes" in refused(tmp_path, classes=["dog"])
    assert "lies in no folder of a class" in refused(tmp_path / "cat")
    assert "images have none: leave them out" in refused(tmp_path, ConfigError, label="class")
    Image.new("L", (3, 2)).save(tmp_path / "dog" / "3.png")
    assert (
        "DATA/dog/3.png has 2 x 3 pixels, and DATA/cat/0.png has 4 x 6: say image_size=(height, width)"
        in refused(tmp_path)
    )
    (tmp_path / "dog" / "3.png").write_bytes(b"no image")
    assert "DATA/dog/3.png is no readable image: take it away" in refused(tmp_path)
    (tmp_path / "dog" / "README").write_bytes(b"what it is")
    assert "DATA/dog/README is of no known format: the name of a file must end with" in refused(tmp_path)
    (tmp_path / "dog" / "README").unlink()
    (tmp_path / "table.csv").write_bytes(b"a,b\n1,2\n")
    assert "are of two formats: name the files of one, as in *.parquet" in refused(tmp_path)


def test_a_library_that_is_missing_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "fluffle_worker.data.stored.images", None)

    assert "pip install 'fluffle[storage]'" in refused(tmp_path, ConfigError)
