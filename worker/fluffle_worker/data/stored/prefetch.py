"""Reading ahead: the next blocks are read in a thread while the last one is worked on."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")
LOOK_S = 0.2


def read_ahead(items: Generator[Item, None, None], most: int = 2) -> Iterator[Item]:
    """Yield the items, of which a thread keeps so many ready; it ends when this iterator is closed."""
    reader = _Reader(items, most)
    try:
        yield from reader.items()
    finally:
        reader.stop()


def ahead_of(
    pool: ThreadPoolExecutor, most: int, call: Callable[[Item], Found], items: Iterable[Item]
) -> Iterator[tuple[Item, Found]]:
    """Yield each item with what the call returns for it, in their order; so many calls are made ahead."""
    waiting: deque[tuple[Item, Future[Found]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) > most:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


class _Reader(Generic[Item]):
    """A thread that fills a queue; what is raised there is raised again where the items are used."""

    def __init__(self, items: Generator[Item, None, None], most: int) -> None:
        self._items = items
        self._queue: Queue[Item | BaseException | None] = Queue(most)
        self._is_over = threading.Event()
        # No daemon: Python would end one in the middle of a library's code, which aborts the process.
        self._thread = threading.Thread(target=self._read, name="fluffle-read-ahead", daemon=False)
        self._thread.start()

    def items(self) -> Iterator[Item]:
        while True:
            try:
                item = self._queue.get(timeout=LOOK_S)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
            self._put(None)
        except BaseException as error:
            self._put(error)
        finally:
            # Closes the file that is open.
            self._items.close()

    def _put(self, item: Item | BaseException | None) -> bool:
        """Wait until there is room in the queue. Return False when nobody wants the items any more."""
        # Python waits for this thread before it exits, also where an iterator was never closed.
        while not self._is_over.is_set() and threading.main_thread().is_alive():
            try:
                self._queue.put(item, timeout=LOOK_S)
            except Full:
                continue
            return True
        return False
