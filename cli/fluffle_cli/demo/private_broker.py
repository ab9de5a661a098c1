"""The demo's RabbitMQ: it starts in a thread, while the workers load TensorFlow."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fluffle.errors import BrokerError
from fluffle_cli.node import BrokerNode

START_TIMEOUT_S = 120.0
POLL_S = 0.05


class PrivateBroker:
    """One private node in a folder, from the moment at which its start begins."""

    def __init__(self, folder: Path, *, on_serving: Callable[[BrokerNode], None]) -> None:
        """Begin the start; `on_serving` is called once, by whoever finds that the node serves."""
        self.folder = folder
        self._on_serving = on_serving
        self._is_announced = False
        self._node: BrokerNode | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._start, name="rabbitmq-start")
        self._thread.start()

    def known(self) -> BrokerNode | None:
        """Return the node, with its address and password, as soon as these are chosen; it may not serve yet.

        Raises ConfigError or BrokerError when it cannot be started.
        """
        if self._failure is not None:
            raise self._failure
        if self._node is not None:
            return self._node
        # `start` returns when the node serves, but writes this file first.
        return BrokerNode.load(self.folder) if (self.folder / "node.json").exists() else None

    def serving(self) -> BrokerNode | None:
        """Return the node once it serves. Raises like `known`."""
        self.known()
        if self._node is not None and not self._is_announced:
            self._is_announced = True
            self._on_serving(self._node)
        return self._node

    def close(self, *, keep: bool, log: Path) -> None:
        """End the node, running or still starting, and keep its log; with `keep` a running one stays."""
        if keep and self._node is not None and self._node.is_running:
            self._node.outlive()
            return
        while self._thread.is_alive():
            # The start sees that its server is gone, and gives up.
            if (self.folder / "node.json").exists():
                with suppress(BrokerError):
                    BrokerNode.load(self.folder).kill()
            self._thread.join(POLL_S)
        if self._node is not None:
            self._node.kill()
        with suppress(FileNotFoundError):
            shutil.copyfile(self.folder / "log" / "broker.log", log)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        try:
            self._node = BrokerNode.start(self.folder, timeout_s=START_TIMEOUT_S)
        except Exception as error:  # raised again in the thread that asks for the node
            self._failure = error
