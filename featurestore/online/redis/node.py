"""One Redis server as a client sees it: options, open connections, scripts, facts, and the translation of errors."""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry

from featurestore.errors import OnlineStoreFullError, OnlineStoreUnavailableError, SettingsError, did_you_mean
from featurestore.online.interface import READ_ONLY
from featurestore.online.url import Credentials, StoreUrl
from featurestore.types.times import Clock

URL_EXAMPLE = "Write it as redis://user:password@host:6379/0."
_URL_OPTIONS = {"host", "port", "username", "password", "db", "client_name", "connection_class"}
_TLS_FILES = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
_TLS_OPTIONS = {"ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers", "ssl_min_version", "ssl_password"} | _TLS_FILES
CONNECTION_OPTIONS: dict[str, Any] = {
    # RESP2 has no unsolicited messages, so a reply always belongs to the last command.
    "protocol": 2,
    "encoding_errors": "replace",
    "health_check_interval": 0,
}
FAILURES_TO_LEAVE = 5
"""After so many failed questions in a row a server is not asked for a while."""
LEFT_SECONDS = 0.5
"""How long such a server is not asked; then one question probes whether it answers. All others fail at once."""
DRIVER_ERRORS = (redis.RedisError, OSError, UnicodeError)
_PASSING = (
    redis.ConnectionError,
    redis.ReadOnlyError,
    redis.exceptions.NoScriptError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
)
_PASSING_WORDS = ("READONLY", "MASTERDOWN", "NOREPLICAS", "LOADING")
"""Codes of errors that redis-py has no class for, or that a script of Redis 6 reports in the middle of its message."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long to wait, in seconds: for a read, for each answer of a write, for a connection."""

    read: float
    write: float
    connect: float


class Connections:
    """Open, unused connections to one server; safe for many threads, and after a fork."""

    def __init__(self, options: Mapping[str, Any], *, connect_seconds: float, answer_seconds: float) -> None:
        self._pool: Any = ConnectionPool(
            **options,
            **CONNECTION_OPTIONS,
            socket_timeout=connect_seconds,
            socket_connect_timeout=connect_seconds,
            retry=Retry(NoBackoff(), 0),
            max_connections=sys.maxsize,  # redis-py counts all that it ever made: the default is 100
        )
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._idle: list[Any] = []
        self._pid = os.getpid()
        self._is_retired = False

    def take(self) -> Any:
        """Return an open connection that nobody else uses; drops those that the server has closed."""
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()  # the old ones belong to the parent process
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            try:
                if not connection.can_read():
                    return connection
            except (redis.ConnectionError, OSError):
                pass
            connection.disconnect()
        return self._open()

    def _open(self) -> Any:
        connection = self._pool.make_connection()
        connection.connect()
        connection.update_current_socket_timeout(self._answer_seconds)
        return connection

    def give(self, connection: Any) -> None:
        """Take back a connection whose every reply was read."""
        self._idle.append(connection)
        if self._is_retired:
            self.close()

    def failed(self, error: BaseException) -> None:
        """Note that a connection will not be given back."""

    def client(self) -> Any:
        """Return redis-py's own client, for rare commands."""
        return redis.Redis(connection_pool=self._pool)

    def close(self, *, for_good: bool = False) -> None:
        """Close unused connections; with ``for_good`` also the used ones, once they are given back."""
        self._is_retired = self._is_retired or for_good
        while self._idle:
            self._idle.pop().disconnect()
        self._pool.disconnect()


class ReadConnections(Connections):
    """Connections for reads, which wait for a hanging server as long as a read may, and after some failures not at all.

    A read may wait for a new connection only while nothing has failed. A thread of its own opens it, so that the next
    read can use a connection that this one gave up on.
    """

    _failures = 0
    _left_until = 0.0

    def take(self) -> Any:
        """See `Connections.take`; raises redis.ConnectionError at once while the server is not asked."""
        if self._failures >= FAILURES_TO_LEAVE:
            now_s = time.monotonic()
            if now_s < self._left_until:
                raise redis.ConnectionError("it did not answer lately")
            self._left_until = now_s + LEFT_SECONDS  # this read probes the server, the others need not wait
        try:
            return super().take()
        except DRIVER_ERRORS as error:
            self.failed(error)
            raise

    def give(self, connection: Any) -> None:
        """Take back a connection: the server answers."""
        self._failures = 0
        super().give(connection)

    def failed(self, error: BaseException) -> None:
        """Count failures by the deadline; other failures cost no time."""
        if isinstance(error, redis.TimeoutError | TimeoutError):
            self._failures += 1
            if self._failures >= FAILURES_TO_LEAVE:
                self._left_until = time.monotonic() + LEFT_SECONDS

    def _open(self) -> Any:
        opening: Future[Any] = Future()
        threading.Thread(target=self._open_for, args=(opening,), daemon=True).start()
        try:
            return opening.result(self._answer_seconds if self._failures else self._connect_seconds)
        except TimeoutError:
            if opening.cancel():
                raise
            return opening.result()  # opened just now

    def _open_for(self, opening: Future[Any]) -> None:
        try:
            connection = super()._open()
        except BaseException as error:
            if opening.set_running_or_notify_cancel():
                opening.set_exception(error)
        else:
            if opening.set_running_or_notify_cancel():
                opening.set_result(connection)
            else:
                super().give(connection)


class RedisNode:
    """One server: connections for reads, others for writes, and the scripts that it knows."""

    def __init__(self, options: Mapping[str, Any], deadlines: Deadlines) -> None:
        self.location = location_of(options)
        self.deadlines = deadlines
        self.reads = ReadConnections(options, connect_seconds=deadlines.connect, answer_seconds=deadlines.read)
        self.writes = Connections(options, connect_seconds=deadlines.connect, answer_seconds=deadlines.write)
        self.loaded: set[str] = set()
        """Digests of the scripts that were loaded into the server."""

    def load(self, connection: Any, script: str) -> None:
        """Load a script that the server does not know yet."""
        digest = digest_of(script)
        if digest not in self.loaded:
            connection.send_command("SCRIPT", "LOAD", script, check_health=False)
            connection.read_response()
            self.loaded.add(digest)

    def facts(self, clock: Clock) -> dict[str, str]:
        """Return server, version, memory and its policy, evictions, and the difference of its clock to ours.

        Also how much of its maxmemory is used, where it has one, and the role of a replica that refuses writes.
        """
        with self.translated(self.deadlines.write):
            client = self.writes.client()
            sections = ("server", "memory", "stats", "replication")
            info = {name: value for section in sections for name, value in client.info(section).items()}
            seconds, microseconds = client.time()
        name = info.get("server_name", "redis")
        limit, counted = info.get("maxmemory", 0), info["used_memory"] - info.get("mem_not_counted_for_evict", 0)
        return {
            "server": f"{name} {info.get(f'{name}_version', info['redis_version'])}",
            "location": self.location,
            **({"role": READ_ONLY} if info.get("role") == "slave" and info.get("slave_read_only", 1) else {}),
            "used_memory_bytes": str(info["used_memory"]),
            "maxmemory_bytes": str(info.get("maxmemory", "unknown")),
            **({"memory_percent": str(counted * 100 // limit)} if limit else {}),
            "maxmemory_policy": str(info.get("maxmemory_policy", "unknown")),
            "evicted_keys": str(info.get("evicted_keys", "unknown")),
            "clock_ahead_ms": str((seconds * 1_000_000 + microseconds - clock()) // 1000),
        }

    def close(self, *, for_good: bool = False) -> None:
        """Close the connections; the next call opens new ones."""
        self.reads.close(for_good=for_good)
        self.writes.close(for_good=for_good)

    @contextmanager
    def translated(self, deadline_seconds: float) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except DRIVER_ERRORS as error:
            # Before Redis 7 a script that hits the memory limit reports the code in the middle of its message.
            if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in str(error):
                raise OnlineStoreFullError(
                    f"Redis at {self.location} has reached its maxmemory of {self._memory_limit()}: {error}.",
                    hint="Raise maxmemory or free memory, then run the same command again.",
                ) from error
            raise unavailable(self.location, deadline_seconds, error) from error

    def _memory_limit(self) -> str:
        try:
            info = self.writes.client().info("memory")
        except redis.RedisError:
            return "unknown size"
        return f"{info.get('maxmemory', 'unknown')} bytes (policy {info.get('maxmemory_policy', 'unknown')})"


def may_pass(error: BaseException) -> bool:
    """Tell whether an error may pass, by a failover, by a restart, or after the topology is read again.

    A refused password stays refused. A server that did not answer in time has used the whole deadline.
    """
    if isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError):
        return False
    return isinstance(error, _PASSING) or (
        isinstance(error, redis.ResponseError) and any(words in str(error) for words in _PASSING_WORDS)
    )


@functools.cache
def digest_of(script: str) -> str:
    """Return the digest by which a server knows a script."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


def checked_reply(reply: Any, length: int) -> list[bytes | None]:
    """Return a valid reply to MGET; raises it if it is an error, redis.InvalidResponse for anything else."""
    if isinstance(reply, Exception):
        raise reply
    if not isinstance(reply, list) or len(reply) != length:
        raise redis.InvalidResponse("the answer is not that of MGET")
    return reply


def in_order(answers: Iterable[tuple[Iterable[int], Iterable[bytes | None]]], count: int) -> list[bytes | None]:
    """Return the values of so many keys, from answers that say which places among the keys they are for."""
    values: list[bytes | None] = [None] * count
    for places, found in answers:
        for place, value in zip(places, found, strict=True):
            values[place] = value
    return values


def unavailable(location: str, deadline_seconds: float, error: BaseException) -> OnlineStoreUnavailableError:
    """Return the error that names the server, without the URL: it may hold a password."""
    if isinstance(error, redis.TimeoutError | TimeoutError):
        what = f"did not answer within {deadline_seconds * 1000:.0f} ms"
    else:
        # Redis quotes the arguments of an unknown command, and they hold entity keys: never show them.
        what = f"is not available: {str(error).partition(', with args')[0].rstrip('.')}"
    return OnlineStoreUnavailableError(f"Redis at {location} {what}.", hint=_advice(error))


_NEEDS_RIGHTS = (
    "Give the user of online_store the commands and keys that it needs: docs/how-to/deploy.md has its ACL line. Or use "
    "the URL of a user who has them."
)
_ADVICE: tuple[tuple[tuple[type[Exception], ...], str, str], ...] = (
    ((redis.exceptions.NoPermissionError,), "NOPERM", _NEEDS_RIGHTS),
    ((), "user executing the script can't", _NEEDS_RIGHTS),
    (
        (redis.AuthenticationError, redis.exceptions.AuthorizationError),
        "WRONGPASS",
        "Check user and password in the URL of online_store: redis://user:password@host:6379/0, with % written as %25 "
        "and a : in the user's name as %3A.",
    ),
    ((), "without any password configured", "Take the password out of the URL of online_store: this Redis has none."),
    (
        (redis.ReadOnlyError,),
        "READONLY",
        "It is a replica: let online_store name the primary, which `INFO replication` shows as master_host.",
    ),
    (
        (),
        "CERTIFICATE_VERIFY_FAILED",
        "Name the authority of its certificate in the URL of online_store (?ssl_ca_certs=/path/ca.pem), and the host "
        "as the certificate does.",
    ),
    (
        (),
        "Connection closed by server",
        "Check that it runs. A server with TLS closes connections without: write rediss:// then. One that requires a "
        "client's certificate closes those without one: name ssl_certfile and ssl_keyfile.",
    ),
    (
        (redis.exceptions.MasterDownError,),
        "MASTERDOWN",
        "It is a replica that has lost its primary: let online_store name the primary, or wait for the failover.",
    ),
    (
        (),
        "NOREPLICAS",
        "Fewer replicas are connected than its min-replicas-to-write asks for: start them, or lower it.",
    ),
    ((redis.BusyLoadingError,), "LOADING", "Wait until it has read its data, and run the same command again."),
    (
        (redis.exceptions.OutOfMemoryError,),
        "OOM",
        "Raise maxmemory or free memory, then run the same command again.",
    ),
    ((), "max number of clients", "Raise maxclients of Redis, or close connections of other programs."),
)
"""Advice by an error's type or, if a script or an older server reports it, by its text."""


def _advice(error: BaseException) -> str:
    for kinds, words, advice in _ADVICE:
        if isinstance(error, kinds) or words in str(error):
            return advice
    return "Check that it runs, and its address and credentials in online_store."


def parsed_url(url: str) -> dict[str, Any]:
    """Return a URL as connection options. Raises SettingsError, which never quotes the URL."""
    url = StoreUrl(url)
    return connection_options(url, url.credentials, URL_EXAMPLE)


def connection_options(url: str, credentials: Credentials, hint: str) -> dict[str, Any]:
    """Return a URL that holds no credentials as connection options, with them. Raises as `parsed_url`."""
    why = "it names no host, or a port that is not a number"
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py has no types here
    except ValueError as error:
        options = {}
        if str(error).startswith("Port out of range"):
            why = "its port is greater than 65535"
    options |= credentials.options
    if not options.get("host"):
        raise SettingsError(f"online_store: the Redis URL cannot be read: {why}.", hint=hint)
    is_encrypted = "connection_class" in options
    for name in sorted(options.keys() - _URL_OPTIONS):
        if name not in _TLS_OPTIONS:
            raise SettingsError(
                f"online_store: {name!r} is not an option of a Redis URL here.",
                hint=did_you_mean(name, _TLS_OPTIONS | {"client_name"}),
            )
        if not is_encrypted:
            raise SettingsError(
                f"online_store: {name!r} is an option of TLS, and redis:// is without.", hint="Write it as rediss://."
            )
    return options


def check_tls(options: Mapping[str, Any]) -> None:
    """Raise SettingsError for certificate files that cannot be read, and for options that the TLS library refuses."""
    if "connection_class" not in options:
        return
    from redis.asyncio.connection import SSLConnection

    for name in sorted(_TLS_FILES & options.keys()):
        if not os.access(options[name], os.R_OK):
            raise SettingsError(
                f"online_store: {name}: {options[name]} is not there, or cannot be read.",
                hint="Name a file in PEM form that this user may read.",
            )
    try:
        told: Any = SSLConnection(**{name: value for name, value in options.items() if name != "connection_class"})
        told.ssl_context.get()
    except (redis.RedisError, OSError, ValueError) as error:
        raise SettingsError(
            f"online_store: TLS does not take the options of the URL: {error}.",
            hint=f"They are {', '.join(sorted(_TLS_OPTIONS))}; certificates and keys are files in PEM form.",
        ) from None


def location_of(options: Mapping[str, Any]) -> str:
    """Return the address and database for messages."""
    return f"{options['host']}:{options.get('port', 6379)}/{options.get('db', 0)}"
