"""A relay between a client and a server: it counts and holds up what passes, and cuts lines at either end."""

import math
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16


@dataclass(slots=True)
class Line:
    """One connection: both of its sockets, and whether the end of one side ends the other."""

    client: socket.socket
    server: socket.socket
    passes_on_ends: bool = True


class Relay:
    """Passes on every connection made to `port`, until it is cut."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[Line] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port: int = self._listener.getsockname()[1]
        self.to_client_bytes = 0
        self._may_pass_to_server_bytes = math.inf
        self._may_pass_to_client_bytes = math.inf
        self._to_client_is_open, self._to_server_is_open = threading.Event(), threading.Event()
        self.let_go()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()

    def hold_answers(self) -> None:
        """Let nothing more pass to the client; what it sends still arrives."""
        self._to_client_is_open.clear()

    def hold_both_ways(self) -> None:
        """Let nothing more pass, as if a cable was pulled: neither side is told."""
        self._to_client_is_open.clear()
        self._to_server_is_open.clear()

    def hold_answers_after(self, to_client_bytes: int) -> None:
        """Let so many bytes in all pass to the client, and then nothing more until `let_go`."""
        self._may_pass_to_client_bytes = to_client_bytes

    def let_go(self) -> None:
        """Let everything pass again."""
        self._may_pass_to_client_bytes = math.inf
        self._to_client_is_open.set()
        self._to_server_is_open.set()

    def cut_after(self, to_server_bytes: int) -> None:
        """Cut the line when so many more bytes have passed to the server, in the middle of a message."""
        self._may_pass_to_server_bytes = to_server_bytes

    def cut(self) -> None:
        """End every connection and listen no more, like a server that is killed."""
        _close(self._listener)
        for line in self._lines:
            _close(line.client)
            _close(line.server)
        self.let_go()

    def cut_clients(self) -> None:
        """End every connection that there is on the client's side alone: the server keeps its side."""
        for line in self._lines:
            line.passes_on_ends = False
            _close(line.client)

    def cut_servers(self) -> None:
        """End every connection that there is on the server's side alone: the client keeps its side."""
        for line in self._lines:
            line.passes_on_ends = False
            _close(line.server)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                line = Line(client, socket.create_connection(("127.0.0.1", self._server_port)))
                self._lines.append(line)
                ways = [
                    threading.Thread(target=way, args=[line]) for way in (self._to_server, self._to_client)
                ]
                self._threads += ways
                for way in ways:
                    way.start()

    def _to_server(self, line: Line) -> None:
        with suppress(OSError):
            while data := line.client.recv(CHUNK_BYTES):
                self._to_server_is_open.wait()
                self._may_pass_to_server_bytes -= len(data)
                if self._may_pass_to_server_bytes < 0:
                    line.server.sendall(data[: int(self._may_pass_to_server_bytes)])
                    self.cut()
                line.server.sendall(data)
            if line.passes_on_ends:
                line.server.shutdown(socket.SHUT_RDWR)

    def _to_client(self, line: Line) -> None:
        with suppress(OSError):
            while data := line.server.recv(CHUNK_BYTES):
                self._to_client_is_open.wait()
                line.client.sendall(data)
                self.to_client_bytes += len(data)
                if self.to_client_bytes >= self._may_pass_to_client_bytes:
                    self._to_client_is_open.clear()
            if line.passes_on_ends:
                line.client.shutdown(socket.SHUT_RDWR)


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
