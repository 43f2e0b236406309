"""Redis and Valkey as the online store: one string per record, written by compare-and-set inside the server."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha1
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import ConnectionPool, parse_url
from redis.retry import Retry

from featurestore.errors import OnlineStoreFullError, OnlineStoreUnavailableError, SettingsError
from featurestore.online.interface import AsyncReader, OnlineStore, Repair, Write, WriteResult
from featurestore.online.keys import check_prefix
from featurestore.online.redis_scripts import REPAIR, SET_NEWEST, repair_arguments, write_arguments
from featurestore.types.times import Clock, system_clock

Result = TypeVar("Result")

RECORDS_PER_CALL = 1_000
BYTES_PER_CALL = 4 << 20
CALLS_UNDER_WAY = 3
"""While the server runs one call, the next are on their way: sending and running overlap."""
CALLS_PER_DEADLINE = 16
"""After so many answers the retries begin anew, so that a long publish outlives many short interruptions."""
BACKOFFS = 7
_URL_OPTIONS = re.compile(r"db|client_name|ssl_\w+")
_GLOB = re.compile(rb"([*?\[\]\\])")
_RESULTS = tuple(WriteResult)
CONNECTION_OPTIONS: dict[str, Any] = {
    # RESP2: nothing arrives that was not asked for, so a reply always belongs to the last command.
    "protocol": 2,
    "encoding_errors": "replace",
    "health_check_interval": 0,
}


class RedisStore(OnlineStore):
    """An `OnlineStore` in one Redis (6.2 or later) or Valkey server.

    Reads wait ``read_timeout_ms`` on an open connection and are never retried; opening one may take
    ``connect_timeout_ms``. Writes wait ``write_timeout_ms`` for each answer; a lost connection is tried again
    within about as long, a server that does not answer is not.
    """

    def __init__(
        self,
        url: str,
        *,
        read_timeout_ms: int = 50,
        write_timeout_ms: int = 5_000,
        connect_timeout_ms: int = 1_000,
        clock: Clock = system_clock,
    ) -> None:
        self._options = _parsed(url)
        self._location = _location(self._options)
        self._read_seconds = read_timeout_ms / 1000
        self._connect_seconds = connect_timeout_ms / 1000
        self._write_seconds = write_timeout_ms / 1000
        self._clock = clock
        self._read_pool = self._pool(self._connect_seconds)
        self._idle: list[Any] = []
        self._pid = os.getpid()
        self._write_pool = self._pool(self._write_seconds)
        # The waits sum up to nine tenths of the deadline: 0.1, 0.2, 0.4, 0.8 and three times 1 s of 5 s.
        backoff = ExponentialBackoff(cap=self._write_seconds / 5, base=self._write_seconds / 100)
        self._retry = Retry(backoff, BACKOFFS, (redis.ConnectionError, redis.exceptions.NoScriptError))
        self._loaded: set[str] = set()

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value in one MGET. Raises OnlineStoreUnavailableError within the read deadline."""
        if not keys:
            return []
        # redis-py's own mget and pool cost as much again as the command itself: it is packed and sent here.
        try:
            connection = self._reading_connection()
            try:
                connection.send_packed_command(connection.pack_command("MGET", *keys), check_health=False)
                reply = checked_reply(connection.read_response(), len(keys))
            except BaseException:
                connection.disconnect()  # a reply still under way must not meet the next reader
                raise
        except (redis.RedisError, OSError, UnicodeError) as error:
            raise unavailable(self._location, self._read_seconds, error) from error
        self._idle.append(connection)
        return reply

    def write(self, writes: Sequence[Write], *, now_us: int) -> list[WriteResult]:
        """Compare and set, a thousand records a call; after a lost connection only unanswered calls are repeated."""
        results: list[WriteResult] = []
        calls = [partial(write_arguments, part, now_us) for part in _parts(writes)]
        for codes in self._run_script(SET_NEWEST, calls):
            results += [_RESULTS[code] for code in codes] if any(codes) else [WriteResult.WRITTEN] * len(codes)
        return results

    def repair(self, repairs: Sequence[Repair], *, now_us: int) -> list[bool]:
        """Replace or delete what still carries exactly the given times."""
        calls = [
            partial(repair_arguments, repairs[start : start + RECORDS_PER_CALL], now_us)
            for start in range(0, len(repairs), RECORDS_PER_CALL)
        ]
        return [bool(code) for codes in self._run_script(REPAIR, calls) for code in codes]

    def put(self, key: bytes, value: bytes) -> None:
        """Set a plain value, without expiry."""
        self._command("SET", key, value)

    def scan(self, prefix: bytes) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        """Yield batches of pairs; a key that is moved while scanning may come twice."""
        for keys in self._scan_keys(check_prefix(prefix)):
            values = self._command("MGET", *keys)
            pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            if pairs:
                yield pairs

    def delete(self, prefix: bytes) -> int:
        """Delete by SCAN and UNLINK in batches; a killed one is resumed by the next."""
        return sum(self._command("UNLINK", *keys) for keys in self._scan_keys(check_prefix(prefix)))

    def facts(self) -> Mapping[str, str]:
        """Return server, version, memory and its policy, evictions, and the difference of its clock to ours."""
        with self._translated(self._write_seconds):
            client = redis.Redis(connection_pool=self._write_pool)
            info = {**client.info("server"), **client.info("memory"), **client.info("stats")}
            seconds, microseconds = client.time()
        name = info.get("server_name", "redis")
        return {
            "server": f"{name} {info.get(f'{name}_version', info['redis_version'])}",
            "location": self._location,
            "used_memory_bytes": str(info["used_memory"]),
            "maxmemory_bytes": str(info.get("maxmemory", "unknown")),
            "maxmemory_policy": str(info.get("maxmemory_policy", "unknown")),
            "evicted_keys": str(info.get("evicted_keys", "unknown")),
            "clock_ahead_ms": str((seconds * 1_000_000 + microseconds - self._clock()) // 1000),
        }

    def reader(self) -> AsyncReader:
        """Return a reader of the running event loop, with connections of its own."""
        from featurestore.online.redis_reader import RedisReader

        return RedisReader(self._options, self._location, self._read_seconds, self._connect_seconds)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        while self._idle:
            self._idle.pop().disconnect()
        self._write_pool.disconnect()

    def _reading_connection(self) -> Any:
        """Return an open connection that nobody else uses; one that the server closed is not given again."""
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()  # they belong to the parent
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
        connection = self._read_pool.make_connection()
        connection.connect()
        connection.update_current_socket_timeout(self._read_seconds)
        return connection

    def _pool(self, socket_seconds: float) -> Any:
        return ConnectionPool(
            **self._options,
            **CONNECTION_OPTIONS,
            socket_timeout=socket_seconds,
            socket_connect_timeout=self._connect_seconds,
            retry=Retry(NoBackoff(), 0),
        )

    def _command(self, *arguments: bytes | str | int) -> Any:
        def run(connection: Any) -> Any:
            connection.send_command(*arguments, check_health=False)
            return connection.read_response()

        return self._retried(run)

    def _run_script(self, script: str, calls: Sequence[Callable[[], list[bytes | int]]]) -> list[list[int]]:
        """Run a script once per call, sending ahead of the answers; return the answers in order."""
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
        replies: list[list[int]] = []

        def run(connection: Any, end: int) -> None:
            if digest not in self._loaded:
                connection.send_command("SCRIPT", "LOAD", script, check_health=False)
                connection.read_response()
                self._loaded.add(digest)
            sent = len(replies)
            while len(replies) < end:
                while sent < min(end, len(replies) + CALLS_UNDER_WAY):
                    connection.send_command("EVALSHA", digest, *calls[sent](), check_health=False)
                    sent += 1
                replies.append(connection.read_response())

        while len(replies) < len(calls):
            self._retried(partial(run, end=min(len(calls), len(replies) + CALLS_PER_DEADLINE)))
        return replies

    def _retried(self, run: Callable[[Any], Result]) -> Result:
        def attempt() -> Result:
            connection: Any = self._write_pool.get_connection()
            try:
                return run(connection)
            except BaseException:
                connection.disconnect()
                raise
            finally:
                self._write_pool.release(connection)

        def failed(error: Exception) -> None:
            if isinstance(error, redis.exceptions.NoScriptError):
                self._loaded.clear()

        def is_worth_it(error: Exception) -> bool:
            return not isinstance(error, redis.AuthenticationError | redis.exceptions.AuthorizationError)

        with self._translated(self._write_seconds):
            return self._retry.call_with_retry(attempt, failed, is_retryable=is_worth_it)

    def _scan_keys(self, prefix: bytes) -> Iterator[list[bytes]]:
        pattern = _GLOB.sub(rb"\\\1", prefix) + b"*"
        cursor: bytes | int = 0
        while True:
            cursor, found = self._command("SCAN", cursor, "MATCH", pattern, "COUNT", RECORDS_PER_CALL)
            keys = [key for key in found if key.startswith(prefix)]
            if keys:
                yield keys
            if int(cursor) == 0:
                return

    @contextmanager
    def _translated(self, deadline_seconds: float) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OSError, UnicodeError) as error:
            # A script that runs into the limit before Redis 7 reports the code in the middle of its message.
            if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in str(error):
                raise OnlineStoreFullError(
                    f"Redis at {self._location} has reached its maxmemory of {self._memory_limit()}: {error}.",
                    hint="Raise maxmemory or free memory, then run the same command again.",
                ) from error
            raise unavailable(self._location, deadline_seconds, error) from error

    def _memory_limit(self) -> str:
        try:
            info = redis.Redis(connection_pool=self._write_pool).info("memory")
        except redis.RedisError:
            return "unknown size"
        return f"{info.get('maxmemory', 'unknown')} bytes (policy {info.get('maxmemory_policy', 'unknown')})"


def checked_reply(reply: Any, length: int) -> list[bytes | None]:
    """Return a reply that is what MGET answers; raises redis.InvalidResponse for anything else."""
    if not isinstance(reply, list) or len(reply) != length:
        raise redis.InvalidResponse("the answer is not that of MGET")
    return reply


def unavailable(location: str, deadline_seconds: float, error: BaseException) -> OnlineStoreUnavailableError:
    """Return the error that names the server, without the URL: it may hold a password."""
    if isinstance(error, redis.TimeoutError | TimeoutError):
        what = f"did not answer within {deadline_seconds * 1000:.0f} ms"
    else:
        what = f"is not available: {error}"
    return OnlineStoreUnavailableError(
        f"Redis at {location} {what}.", hint="Check that it runs, and its address and credentials in online_store."
    )


def _parsed(url: str) -> dict[str, Any]:
    """Return a URL as connection options. Raises SettingsError, never with the URL itself in it."""
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        options = {}
    if not options.get("host"):
        raise SettingsError(
            "online_store: the Redis URL cannot be read.", hint="Write it as redis://user:password@host:6379/0."
        )
    for name in options.keys() - {"host", "port", "username", "password", "connection_class"}:
        if not _URL_OPTIONS.fullmatch(name):
            raise SettingsError(f"online_store: {name!r} is not an option of a Redis URL here.")
    return options


def _location(options: Mapping[str, Any]) -> str:
    return f"{options['host']}:{options.get('port', 6379)}/{options.get('db', 0)}"


def _parts(writes: Sequence[Write]) -> Iterator[Sequence[Write]]:
    """Cut the writes where a call would hold too many records or bytes."""
    start = size = 0
    for end, write in enumerate(writes):
        size += len(write.record)
        if end - start == RECORDS_PER_CALL or (size > BYTES_PER_CALL and end > start):
            yield writes[start:end]
            start, size = end, len(write.record)
    if start < len(writes):
        yield writes[start:]
