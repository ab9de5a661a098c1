"""A task whose data and model take for ever to read and to build."""

import time
from pathlib import Path
from typing import NoReturn

from numpy_task import SoftmaxRegression

BEGUN = "begun"


class SlowToBegin(SoftmaxRegression):
    """Softmax regression that never begins; a file in the folder says that it tries to."""

    def prepare(self, site: object) -> NoReturn:
        for_ever()

    def initial_weights(self, seed: int) -> NoReturn:
        for_ever()


def for_ever() -> NoReturn:
    Path(BEGUN).touch()
    while True:
        time.sleep(0.01)


task = SlowToBegin()
