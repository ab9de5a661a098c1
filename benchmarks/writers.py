"""Digits by their writers: each site is one person, and a person whom no site knows is held out.

    fluffle simulate --task benchmarks.writers:without_3 --clients 13

The digits of scikit-learn come in runs of about 130, each by one of 14 writers, who all began with the digits
from 0 to 9 in order. Where the runs begin is known from scikit-learn's course (INRIA, "Sample grouping").
`without_3` holds writer 3 out; site i trains with the digits of the i-th of the other 13, and a site that is
alone with all of them.
"""

from functools import cache

import numpy as np
from sklearn.datasets import load_digits

from fluffle.task import Site
from fluffle_worker.keras_task import KerasTask
from fluffle_worker.tasks.digits import Images, Labels, build_model

BEGINS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)
WRITERS = len(BEGINS)


@cache
def written() -> list[tuple[Images, Labels]]:
    """Return the digits of each writer: pixels [examples, 64] in 0..1, and labels [examples]."""
    images, labels = load_digits(return_X_y=True)
    parts = (
        np.split((images / 16).astype(np.float32), BEGINS[1:]),
        np.split(labels.astype(np.int64), BEGINS[1:]),
    )
    return list(zip(*parts, strict=True))


def leaving_out(writer: int) -> KerasTask:
    """Return the task that holds one writer out; a fourteenth site has the digits of the first one too."""

    def train_data(site: Site) -> tuple[Images, Labels]:
        others = [each for index, each in enumerate(written()) if index != writer]
        if site.count == 1:
            images, labels = zip(*others, strict=True)
            return np.concatenate(images), np.concatenate(labels)
        return others[site.index % len(others)]

    return KerasTask(build_model, train_data, lambda: written()[writer])


def __getattr__(name: str) -> KerasTask:
    """Return the task `without_N`."""
    number = name.removeprefix("without_")
    if number == name or not number.isdecimal() or int(number) >= WRITERS:
        raise AttributeError(f"{name!r} is none of without_0 to without_{WRITERS - 1}")
    return leaving_out(int(number))
