"""A whole federation in the threads of one process, and the rows of scikit-learn that its sites train on."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from brokers import all_versions
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from fluffle.rabbit import RabbitBroker
from fluffle.record import Folded
from fluffle.task import Site
from fluffle.topology import topology_of
from fluffle_cli.node import BrokerNode

DEADLINE_S = 300.0
HELD_OUT_DIGITS, HELD_OUT_TUMOURS = 300, 169

Data = tuple[NDArray[Any], NDArray[Any]]


async def all_of(*calls: Callable[[], object]) -> list[object]:
    """Make all calls at once, each in a thread of its own, and return their results in this order.

    The first error is raised at once: other calls, which may wait for the one that failed, are left behind.
    """
    return await asyncio.wait_for(asyncio.gather(*map(_in_a_thread, calls)), DEADLINE_S)


def _in_a_thread(call: Callable[[], object]) -> asyncio.Future[object]:
    outcome: Future[object] = Future()

    def run() -> None:
        outcome.set_running_or_notify_cancel()
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(outcome)


def rounds_by_worker(node: BrokerNode, federation: str) -> Mapping[str, Sequence[Folded]]:
    """Return what was folded of each worker, in its order, by the worker's name."""
    rounds = defaultdict(list)
    with RabbitBroker(node.amqp_url, name="test", heartbeat_s=30) as broker:
        for version in all_versions(broker, topology_of(federation)):
            for one in version.folded:
                rounds[one.id.worker].append(one)
    return dict(sorted(rounds.items()))


def digits_of(site: Site) -> Data:
    """Return a site's images as float32 [rows, 64] in 0..1, and their labels."""
    x, y = _digits()
    return _of_site(x, site, HELD_OUT_DIGITS), _of_site(y, site, HELD_OUT_DIGITS)


def held_out_digits() -> Data:
    """Return the images and labels of no site."""
    x, y = _digits()
    return x[:HELD_OUT_DIGITS], y[:HELD_OUT_DIGITS]


def tumours_of(site: Site) -> Data:
    """Return a site's measurements of tumours as float64 [rows, 30], each scaled, and their labels."""
    x, y = _tumours()
    return _of_site(x, site, HELD_OUT_TUMOURS), _of_site(y, site, HELD_OUT_TUMOURS)


def held_out_tumours() -> Data:
    """Return the measurements and labels of no site."""
    x, y = _tumours()
    return x[:HELD_OUT_TUMOURS], y[:HELD_OUT_TUMOURS]


def _of_site(rows: NDArray[Any], site: Site, held_out: int) -> NDArray[Any]:
    return rows[held_out + site.index :: site.count]


def _digits() -> Data:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


def _tumours() -> Data:
    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(axis=0)) / x.std(axis=0), y
