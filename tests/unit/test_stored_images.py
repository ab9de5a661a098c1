"""What the pixels of images become: all that the files hold, and the same at each site."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluffle.errors import TaskError
from fluffle.task import Site
from fluffle_worker.data import open_dataset

DEEP = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def refused(folder: Path, **wanted: Any) -> str:
    with pytest.raises(TaskError) as error:
        open_dataset(folder, **wanted).arrays()
    return str(error.value).replace(str(folder), "DATA")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", DEEP),
        ("a.tif", DEEP),
        ("a.tif", DEEP.astype(np.int32)),
        ("a.tif", DEEP.astype(np.float32) / 7 - 100),
    ],
    ids=["16 bits", "16 bits of TIFF", "32 bits", "floats"],
)
def test_pixels_of_more_than_8_bits_keep_their_values(
    tmp_path: Path, name: str, values: np.ndarray[Any, Any]
) -> None:
    """Pillow clips them to 255 (pytorch/vision#2218, python-pillow/Pillow#3011)."""
    save(Image.fromarray(values), tmp_path / "cat" / name)

    [x, _] = open_dataset(tmp_path).arrays()
    [larger, _] = open_dataset(tmp_path, image_size=(8, 12)).arrays()

    np.testing.assert_array_equal(x[0, :, :, 0], values)
    assert larger.shape == (1, 8, 12, 1)
    assert larger.max() == values.max()


def test_a_deep_image_stands_the_right_way_up(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(Image.fromarray(DEEP), tmp_path / "cat" / "a.tif", exif=exif)

    [x, _] = open_dataset(tmp_path).arrays()

    np.testing.assert_array_equal(x[0, :, :, 0], np.rot90(DEEP, -1))


def coloured() -> Image.Image:
    return Image.new("RGB", (6, 4), (200, 100, 7))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            Image.new("L", (6, 4)),
            coloured(),
            "b.png is coloured with 8 bits, and DATA/cat/a.png, the first of all, is grey with 8 bits",
        ),
        (
            Image.new("L", (6, 4)),
            coloured().quantize(),
            "b.png is coloured with 8 bits, and DATA/cat/a.png, the first of all, is grey with 8 bits",
        ),
        (
            coloured(),
            Image.fromarray(DEEP),
            "b.png is grey with more than 8 bits, and DATA/cat/a.png, the first of all, is coloured with",
        ),
        (
            Image.new("L", (6, 4)),
            Image.fromarray(DEEP),
            "b.png is grey with more than 8 bits, and DATA/cat/a.png, the first of all, is grey with 8 bits",
        ),
        (
            Image.fromarray(DEEP),
            Image.new("L", (6, 4)),
            "b.png is grey with 8 bits, and DATA/cat/a.png, the first of all, is grey with more than 8 bits",
        ),
        (
            Image.fromarray(DEEP),
            coloured(),
            "b.png is coloured with 8 bits, and DATA/cat/a.png, the first of all, is grey with more than 8",
        ),
    ],
)
def test_an_image_of_another_kind_than_the_first_is_refused_at_the_site_that_reads_it(
    tmp_path: Path, first: Image.Image, second: Image.Image, said: str
) -> None:
    """It would lose colours or bits, or be 257 times as dark as those with 16 bits."""
    save(first, tmp_path / "cat" / "a.png")
    save(second, tmp_path / "cat" / "b.png")

    assert len(open_dataset(tmp_path, shard=Site(index=0, count=2)).arrays()[0]) == 1
    found = refused(tmp_path, shard=Site(index=1, count=2))
    assert said in found
    assert found.endswith("write all images in the same way")


def test_grey_images_among_coloured_ones_and_grey_pixels_in_coloured_files_are_read(tmp_path: Path) -> None:
    save(coloured(), tmp_path / "colour" / "cat" / "a.png")
    save(Image.new("L", (6, 4), 9), tmp_path / "colour" / "cat" / "b.png")
    save(Image.new("L", (6, 4), 9), tmp_path / "grey" / "cat" / "a.png")
    save(Image.new("RGB", (6, 4), (8, 8, 8)), tmp_path / "grey" / "cat" / "b.png")
    save(Image.new("RGBA", (6, 4), (7, 7, 7, 255)), tmp_path / "grey" / "cat" / "c.png")

    colour, grey = (open_dataset(tmp_path / each).arrays()[0] for each in ("colour", "grey"))

    assert colour[:, 0, 0].tolist() == [[200, 100, 7], [9, 9, 9]]
    assert grey[:, 0, 0].tolist() == [[9], [8], [7]]


def test_all_sites_have_the_channels_of_the_first_image_of_all(tmp_path: Path) -> None:
    save(coloured(), tmp_path / "cat" / "a.png")
    save(Image.new("L", (6, 4)), tmp_path / "cat" / "b.png")

    shapes = [open_dataset(tmp_path, shard=Site(index=at, count=2)).arrays()[0].shape for at in range(2)]

    assert shapes == [(1, 4, 6, 3)] * 2


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_a_first_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    save(coloured(), tmp_path / "cat" / "b.png")
    (tmp_path / "cat" / "a.png").write_bytes(content)

    assert refused(tmp_path).startswith("DATA/cat/a.png is no readable image: take it away")
