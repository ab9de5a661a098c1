"""A relay between a client and a server: it counts what passes, and can cut the line or hold it up."""

from __future__ import annotations

import math
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 1 << 16


class Relay:
    """Passes on every connection made to `port`, until it is cut."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port: int = self._listener.getsockname()[1]
        self.to_client_bytes = 0
        self._may_pass_to_server_bytes = math.inf
        self._may_pass_to_client_bytes = math.inf
        self._to_client_is_open = threading.Event()
        self._to_client_is_open.set()

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

    def hold_answers_after(self, to_client_bytes: int) -> None:
        """Let so many bytes in all pass to the client, and then nothing more until `let_go`."""
        self._may_pass_to_client_bytes = to_client_bytes

    def let_go(self) -> None:
        """Let everything pass to the client again."""
        self._may_pass_to_client_bytes = math.inf
        self._to_client_is_open.set()

    def cut_after(self, to_server_bytes: int) -> None:
        """Cut the line when so many more bytes have passed to the server, in the middle of a message."""
        self._may_pass_to_server_bytes = to_server_bytes

    def cut(self) -> None:
        """End every connection and listen no more, like a server that is killed."""
        self._to_client_is_open.set()
        for each in [self._listener, *self._sockets]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                ways = [
                    threading.Thread(target=self._to_server, args=[client, server]),
                    threading.Thread(target=self._to_client, args=[server, client]),
                ]
                self._threads += ways
                for way in ways:
                    way.start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                self._may_pass_to_server_bytes -= len(data)
                if self._may_pass_to_server_bytes < 0:
                    server.sendall(data[: int(self._may_pass_to_server_bytes)])
                    self.cut()
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                self._to_client_is_open.wait()
                client.sendall(data)
                self.to_client_bytes += len(data)
                if self.to_client_bytes >= self._may_pass_to_client_bytes:
                    self._to_client_is_open.clear()
            client.shutdown(socket.SHUT_RDWR)
