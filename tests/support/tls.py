"""TLS before a Redis server: an end of the test's own, because not every server is built with one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

import trustme

from .redis_cluster import RedisCluster
from .redis_server import RedisServer

_HANDSHAKE = b"\x16"
"""The first byte of every TLS connection, and of no command of Redis."""


class Certificates:
    """An authority of the test's own, the server's certificate for 127.0.0.1, a client's, and the URL options."""

    def __init__(self, directory: Path, *, server: str = "127.0.0.1", wants_client: bool = False) -> None:
        authority = trustme.CA()
        self.authority, self.client = directory / "ca.pem", directory / "client.pem"
        authority.cert_pem.write_to_path(self.authority)
        authority.issue_cert("client@example").private_key_and_cert_chain_pem.write_to_path(self.client)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(server).configure_cert(self.context)
        if wants_client:
            authority.configure_trust(self.context)
            self.context.verify_mode = ssl.CERT_REQUIRED

    @property
    def options(self) -> str:
        return f"ssl_ca_certs={self.authority}"

    @property
    def client_options(self) -> str:
        return f"{self.options}&ssl_certfile={self.client}&ssl_keyfile={self.client}"


class TlsProxy:
    """Ends TLS and passes on what is in it; what comes without TLS too, as the nodes of a cluster speak."""

    def __init__(self, certificates: Certificates, target: int = 0) -> None:
        self.target = target
        """The port that is spoken to, on loopback."""
        self.encrypted = 0
        """How many connections came with TLS and shook hands."""
        self._context = certificates.context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        self._serving = self._loop.create_task(self._serve())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))  # transports close in the next rounds
        self._loop.close()

    async def _serve(self) -> None:
        tasks = set()
        while True:
            accepted, _ = await self._loop.sock_accept(self._listener)
            tasks.add(task := self._loop.create_task(self._pass_on(accepted)))
            task.add_done_callback(tasks.discard)

    async def _pass_on(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a handshake that failed, or somebody who left
            is_encrypted = await self._first_byte(accepted) == _HANDSHAKE
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._context if is_encrypted else None
            )
            self.encrypted += is_encrypted
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(_pump(reader, server_writer), _pump(server_reader, writer))

    async def _first_byte(self, accepted: socket.socket) -> bytes:
        readable = asyncio.Event()
        self._loop.add_reader(accepted, readable.set)
        try:
            await readable.wait()
            self._loop.remove_reader(accepted)
            return accepted.recv(1, socket.MSG_PEEK)
        except BaseException:  # the proxy ends, or the client has left
            self._loop.remove_reader(accepted)
            accepted.close()
            raise


class TlsRedisCluster(RedisCluster):
    """A cluster whose nodes are known by the ports of proxies that end TLS."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        self.certificates = certificates
        self.proxies: dict[int, TlsProxy] = {}
        """By the port of the server behind it."""
        super().__init__(directory)

    @property
    def url(self) -> str:
        ports = (proxy.port for proxy in self.proxies.values())
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"rediss+cluster://{hosts}?{self.certificates.options}"

    def _start(self, directory: Path, *options: str) -> RedisServer:
        proxy = self._stack.enter_context(TlsProxy(self.certificates))
        server = super()._start(directory, "--cluster-announce-port", str(proxy.port), *options)
        proxy.target = server.port
        self.proxies[server.port] = proxy
        return server

    def _owners(self) -> dict[int, int]:
        behind = {proxy.port: port for port, proxy in self.proxies.items()}
        return {slot: behind[port] for slot, port in super()._owners().items()}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
