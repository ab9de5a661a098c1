"""Folders of images, one for each class, decoded by Pillow."""

import io
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fluffle.errors import ConfigError, TaskError
from fluffle.storage import StoredFile
from fluffle.task import Site
from fluffle_worker.data.stored.npz import NumpyBlock
from fluffle_worker.data.stored.opening import Files
from fluffle_worker.data.stored.prefetch import ahead_of
from fluffle_worker.data.stored.source import Part, RowForm, Wanted

# So many are read and decoded at once, since a store takes its time for each.
THREADS = 8
# Modes of Pillow that have one channel of 8 bits, and those of 16 bits, 32 bits and floats.
GREY = {"1", "L", "LA"}
DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
# What images become, and how it is called.
SAID = {"L": "grey with 8 bits", "RGB": "coloured with 8 bits", "F": "grey with more than 8 bits"}


class ImageSource:
    """The images that a site reads: every so-manieth, so that each site has some of each class.

    The first of all images decides for all sites whether `x` has grey, deep grey or coloured pixels.
    """

    def __init__(self, files: Files, found: Sequence[StoredFile], wanted: Wanted, shard: Site) -> None:
        if wanted.columns is not None or wanted.label is not None:
            raise ConfigError("columns= and label= name columns, and images have none: leave them out")
        self._files = files
        own = list(found)[shard.index :: shard.count]
        if not own:
            raise TaskError(
                f"site {shard.index} of {shard.count} gets no image of {files.location.url}: there are fewer "
                "images than sites"
            )
        names = {file: self._class_of(file) for file in found}
        classes = wanted.classes or tuple(sorted(set(names.values())))
        number_of = {str(name): number for number, name in enumerate(classes)}
        if unknown := set(names.values()) - set(number_of):
            raise TaskError(
                f"{files.location.url} has the folder {min(unknown)!r}, which is none of the classes: add "
                "it to classes=, or take the folder away"
            )
        self._numbers = {file: number_of[names[file]] for file in own}
        self.parts = [Part(file, end=1) for file in own]
        self._size = wanted.image_size
        self._first = found[0]
        with self._opened(self._first) as first:
            self._mode = _mode_of(first)
            image = self._converted(first, self._first)
        shape = self._pixels_of(image).shape
        self.form = RowForm(("image",), shape, "class", (), np.int64, classes)

    def blocks(self, parts: Iterable[Part]) -> Generator[NumpyBlock, None, None]:
        """Read and decode some images, one block for each."""
        with ThreadPoolExecutor(THREADS, "fluffle-images") as pool:
            for part, pixels in ahead_of(pool, THREADS, self._pixels_like_the_first, parts):
                label = np.array([self._numbers[part.file]], np.int64)
                yield NumpyBlock(pixels[None], label, part.file.url, ("image", "class"))

    def _class_of(self, file: StoredFile) -> str:
        """Return the name of the class: that of the folder just below the one that the URL names."""
        base = self._files.location.path.rstrip("/") + "/"
        name, separator, _ = file.path.removeprefix(base).partition("/")
        if not file.path.startswith(base) or not separator:
            raise TaskError(
                f"{file.url} lies in no folder of a class: name the folder in which there is one folder of "
                "images for each class"
            )
        return name

    def _content(self, file: StoredFile) -> bytes:
        with self._files.open(file) as stream:
            content: bytes = stream.read()
        return content

    @contextmanager
    def _opened(self, file: StoredFile) -> Iterator[Image.Image]:
        """Open an image. Raises TaskError where the file is none, or is damaged."""
        try:
            with warnings.catch_warnings():
                # Pillow warns of an image that is far larger than any photograph.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self._content(file))) as image:
                    yield image
        except (
            OSError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            said = str(error).partition(" <")[0]
            raise TaskError(
                f"{file.url} is no readable image: take it away, or write it again ({said})"
            ) from error

    def _pixels(self, file: StoredFile) -> NDArray[Any]:
        with self._opened(file) as opened:
            image = self._converted(opened, file)
        return self._pixels_of(image)

    def _pixels_of(self, image: Image.Image) -> NDArray[Any]:
        """Return the pixels of a converted image [height, width, channels].

        They are 0 to 255, or what the file holds where it has more than 8 bits.
        """
        if self._size:
            height, width = self._size
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _converted(self, opened: Image.Image, file: StoredFile) -> Image.Image:
        """Return an image the right way up, and in the mode of the first one.

        Raises TaskError where that would lose something.
        """
        image = ImageOps.exif_transpose(opened)
        mode = _mode_of(image)
        if mode == self._mode or (mode, self._mode) == ("L", "RGB"):
            # Some versions of Pillow clip to 8 bits on the way to F (python-pillow/Pillow#9931).
            is_deep = mode == "F"
            return Image.fromarray(np.asarray(image, np.float32)) if is_deep else image.convert(self._mode)
        if (mode, self._mode) == ("RGB", "L"):
            red, green, blue = image.convert("RGB").split()
            if red == green == blue:
                return red
        raise TaskError(
            f"{file.url} is {SAID[mode]}, and {self._first.url}, the first of all, is {SAID[self._mode]}: "
            "write all images in the same way"
        )

    def _pixels_like_the_first(self, part: Part) -> NDArray[Any]:
        pixels = self._pixels(part.file)
        if pixels.shape != self.form.row_shape:
            (height, width), (other_height, other_width) = self.form.row_shape[:2], pixels.shape[:2]
            raise TaskError(
                f"{part.file.url} has {other_height} x {other_width} pixels, and {self._first.url} has "
                f"{height} x {width}: say image_size=(height, width), to which all are scaled"
            )
        return pixels


def _mode_of(image: Image.Image) -> str:
    """Return the mode of Pillow that holds all of an image but its transparency."""
    if image.mode in DEEP:
        return "F"
    return "L" if image.mode in GREY else "RGB"
