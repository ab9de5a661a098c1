"""What stands in a `.keras` file; no code or class in it is looked at."""

from __future__ import annotations

import importlib
import io
import tempfile
import zipfile
from pathlib import Path

from fluffle.errors import LayoutError, TaskError
from fluffle_worker.keras_task.backend import KerasModel


def require_same_model(model: KerasModel, path: Path) -> None:
    """Raise TaskError when there is no such `.keras` file, LayoutError when it holds another model.

    Keras itself says nothing of layers that only the file has.
    """
    found = _stored_tensors(path)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own.keras"
        model.save(own)
        expected = _stored_tensors(own)
    for name in sorted(expected.keys() | found.keys()):
        there, here = found.get(name, "nothing"), expected.get(name, "nothing")
        if there != here:
            raise LayoutError(f"{path} holds another model: {there} at {name}, where the task has {here}")


def _stored_tensors(path: Path) -> dict[str, str]:
    """Return the dtype and shape of each tensor in a `.keras` file but the optimizer's, by name."""
    if path.suffix != ".keras" or not path.is_file():
        raise TaskError(f"there is no file {path} that ends in .keras")
    h5py = importlib.import_module("h5py")
    found: dict[str, str] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = f"{item.dtype}{list(item.shape)}"

    try:
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(content) as stored:
            stored.visititems(note)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise TaskError(f"{path} is no model in Keras's own format: {error}") from error
    return found
