"""TensorBoard's own reader, which here does without TensorFlow."""

import sys
from pathlib import Path
from types import ModuleType

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# As PyTorch has it too: with a module of this name TensorBoard reads files with its own code.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))


def events_in(folder: Path) -> EventAccumulator:
    """Read all that the event files of one folder say."""
    return EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()


def points_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return each curve as steps and values, and each histogram as steps and how many values it has."""
    events = events_in(folder)
    points = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in events.Tags()["histograms"]:
        points[tag] = [(one.step, one.histogram_value.num) for one in events.Histograms(tag)]
    return points
