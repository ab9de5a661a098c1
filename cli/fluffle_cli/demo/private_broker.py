"""The demo's RabbitMQ: it starts in a thread, while the workers load TensorFlow."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from fluffle.errors import BrokerError
from fluffle_cli.node import BrokerNode

START_TIMEOUT_S = 120.0
POLL_S = 0.05


class PrivateBroker:
    """One private node in a folder, from the moment at which its start begins."""

    def __init__(self, folder: Path, *, on_serving: Callable[[BrokerNode], None]) -> None:
        """Begin the start; `on_serving` is called once, by the first call that finds that the node serves."""
        self.folder = folder
        self._on_serving = on_serving
        self._is_announced = False
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rabbitmq-start")
        self._start = executor.submit(BrokerNode.start, folder, timeout_s=START_TIMEOUT_S)
        executor.shutdown(wait=False)

    def known(self) -> BrokerNode | None:
        """Return the node, with its address and password, as soon as these are chosen; it may not serve yet.

        Raises ConfigError or BrokerError when it cannot be started.
        """
        if self._start.done():
            return self._start.result()
        # The node serves when its start is done, but this file is written first.
        return BrokerNode.load(self.folder) if (self.folder / "node.json").exists() else None

    def serving(self) -> BrokerNode | None:
        """Return the node once it serves. Raises like `known`."""
        if not self._start.done():
            return None
        node = self._start.result()
        if not self._is_announced:
            self._is_announced = True
            self._on_serving(node)
        return node

    def close(self, *, keep: bool, log: Path) -> None:
        """End the node, running or still starting, and keep its log; with `keep` a running one stays."""
        while not self._start.done():
            # The start sees that its server is gone, and gives up.
            if (self.folder / "node.json").exists():
                with suppress(BrokerError):
                    BrokerNode.load(self.folder).kill()
            wait([self._start], POLL_S)
        node = None if self._start.exception() else self._start.result()
        if node and keep and node.is_running:
            node.outlive()
            return
        if node:
            node.kill()
        with suppress(FileNotFoundError):
            shutil.copyfile(self.folder / "log" / "broker.log", log)
        shutil.rmtree(self.folder, ignore_errors=True)
