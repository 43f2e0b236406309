"""A TCP proxy that breaks a connection in the ways a network and a stuck server do."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from types import TracebackType
from typing import Literal, Self

Fault = Literal["none", "hang", "reset", "garbage", "delay", "drip", "refuse"]

CHUNK_BYTES = 65_536


class FaultProxy:
    """Forwards a free loopback port to another one; ``fault`` may be changed at any time, and ``target_port``, for
    connections that are opened from then on.

    ``hang`` swallows what the server answers, ``reset`` cuts every connection, ``garbage`` answers nonsense,
    ``delay`` holds each answer back for a random time up to ``delay_seconds``, ``drip`` sends a byte at a time,
    ``refuse`` closes new connections at once.
    """

    def __init__(self, target_port: int, *, delay_seconds: float = 0.02) -> None:
        self.fault: Fault = "none"
        self.delay_seconds = delay_seconds
        self.target_port = target_port
        self._random = random.Random(7)
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every open connection."""
        for one in list(self._sockets):
            _reset(one)

    def close(self) -> None:
        self._closing.set()
        self.cut()
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            if self.fault == "refuse":
                _reset(client)
                continue
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
        except OSError:
            _reset(client)
            return
        pair = {client, server}
        self._sockets |= pair
        try:
            while not self._closing.is_set():
                ready, _, _ = select.select(list(pair), [], [], 0.1)
                for source in ready:
                    data = source.recv(CHUNK_BYTES)
                    if not data:
                        return
                    if source is client:
                        server.sendall(data)
                    else:
                        self._answer(client, data)
        except (OSError, ValueError):
            return
        finally:
            self._sockets -= pair
            for one in pair:
                _reset(one)

    def _answer(self, client: socket.socket, data: bytes) -> None:
        if self.fault == "hang":
            return
        if self.fault == "reset":
            raise OSError
        if self.fault == "garbage":
            data = self._random.randbytes(len(data))
        if self.fault == "delay":
            time.sleep(self._random.random() * self.delay_seconds)
        if self.fault == "drip":
            for place in range(len(data)):
                client.sendall(data[place : place + 1])
                time.sleep(0.01)
            return
        client.sendall(data)


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
