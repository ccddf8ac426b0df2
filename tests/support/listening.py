"""A port where each connection is served in a thread of its own.  (No claims.)

Every fake upstream on real sockets has one: what it does with a connection is its `serve`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

HOST: Final = "127.0.0.1"
BACKLOG: Final = 1024  # connections that may come at once


class Listening:
    """Accepts connections until it is closed; `serve` is given each of them, and closes it."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self.serve = serve
        self.count = 0  # of connections
        self.listener = socket.create_server((HOST, 0), backlog=BACKLOG)
        self.port: int = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.listener.accept()
                self.count += 1
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self.serve, args=(caller,), daemon=True)
                self.threads.append(thread)
                thread.start()

    def close(self) -> None:
        """Accept no more; connections that are being served go on."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def join(self, seconds_max: float) -> None:
        """Wait until everything has ended.  Raises: AssertionError, if it has not in time."""
        for thread in self.threads:
            thread.join(seconds_max)
            assert not thread.is_alive()
