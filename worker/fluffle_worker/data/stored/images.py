"""Folders of images, one for each class, decoded by Pillow."""

import io
import warnings
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

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
# Modes of Pillow that have one channel.
GREY = {"1", "L", "LA", "I", "I;16", "F"}


class ImageSource:
    """The images that a site reads: every so-manieth, so that each site has some of each class."""

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
        with Image.open(io.BytesIO(self._content(own[0]))) as first:
            self._mode = "L" if first.mode in GREY else "RGB"
        self._size = wanted.image_size
        shape = self._pixels(own[0]).shape
        self._first = own[0]
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

    def _pixels(self, file: StoredFile) -> NDArray[np.uint8]:
        """Return the pixels of an image [height, width, channels], 0 to 255, the right way up."""
        try:
            with warnings.catch_warnings():
                # Pillow warns of an image that is far larger than any photograph.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self._content(file))) as opened:
                    image = ImageOps.exif_transpose(opened).convert(self._mode)
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
        if self._size:
            height, width = self._size
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image, np.uint8)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _pixels_like_the_first(self, part: Part) -> NDArray[np.uint8]:
        pixels = self._pixels(part.file)
        if pixels.shape != self.form.row_shape:
            (height, width), (other_height, other_width) = self.form.row_shape[:2], pixels.shape[:2]
            raise TaskError(
                f"{part.file.url} has {other_height} x {other_width} pixels, and {self._first.url} has "
                f"{height} x {width}: say image_size=(height, width), to which all are scaled"
            )
        return pixels
