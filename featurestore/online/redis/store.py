"""Redis and Valkey as the online store: one string per record, written by compare-and-set inside the server."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import redis
from hiredis import pack_command
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from featurestore.online.interface import (
    Advanced,
    Append,
    AsyncReader,
    Fold,
    OnlineStore,
    Placed,
    Repair,
    Slice,
    Write,
    WriteResult,
)
from featurestore.online.records.codec import parts
from featurestore.online.records.keys import check_prefix
from featurestore.online.redis.node import (
    DRIVER_ERRORS,
    Deadlines,
    RedisNode,
    check_tls,
    checked_reply,
    digest_of,
    in_order,
    may_pass,
    parsed_url,
    unavailable,
)
from featurestore.online.redis.scripts import (
    ADVANCE,
    FOLD,
    PLACE,
    REPAIR,
    SET_NEWEST,
    advance_arguments,
    fold_arguments,
    place_arguments,
    repair_arguments,
    write_arguments,
)
from featurestore.types.times import Clock, system_clock

Result = TypeVar("Result")
Item = TypeVar("Item", Write, Repair, Fold)
Part = TypeVar("Part")
Kept = TypeVar("Kept", Append, Placed)
Arguments = Callable[[Part], list[bytes | int]]
"""Returns a script's number of keys, keys and arguments for some items, or for a slice."""

RECORDS_PER_CALL = 1_000
BYTES_PER_CALL = 4 << 20
CALLS_UNDER_WAY = 3
"""How many calls are sent ahead: sending overlaps with running."""
CALLS_PER_DEADLINE = 16
"""After so many answers the retries start again, so that a long publish survives many short interruptions."""
BACKOFFS = 7
_GLOB = re.compile(rb"([*?\[\]\\])")
_RESULTS = tuple(WriteResult)


class RedisCommands(OnlineStore):
    """The parts that are the same for one server and for a cluster."""

    def __init__(
        self, *, read_timeout_ms: int = 50, write_timeout_ms: int = 5_000, connect_timeout_ms: int = 1_000, clock: Clock
    ) -> None:
        self._deadlines = Deadlines(read_timeout_ms / 1000, write_timeout_ms / 1000, connect_timeout_ms / 1000)
        self.write_deadline_seconds = self._deadlines.write
        self._clock = clock

    def write(self, writes: Sequence[Write], *, now_us: int) -> list[WriteResult]:
        """Compare and set, a thousand records at a time; after a lost connection only unanswered calls are repeated."""
        results: list[WriteResult] = []
        cut = [writes[part] for part in parts([write.record for write in writes], RECORDS_PER_CALL, BYTES_PER_CALL)]
        for codes in self._run_script(SET_NEWEST, cut, partial(write_arguments, now_us=now_us)):
            results += [_RESULTS[code] for code in codes] if any(codes) else [WriteResult.WRITTEN] * len(codes)
        return results

    def repair(self, repairs: Sequence[Repair], *, now_us: int) -> list[bool]:
        """Replace or delete records that still have exactly the given times."""
        cut = [repairs[start : start + RECORDS_PER_CALL] for start in range(0, len(repairs), RECORDS_PER_CALL)]
        answers = self._run_script(REPAIR, cut, partial(repair_arguments, now_us=now_us))
        return [bool(code) for codes in answers for code in codes]

    def put(self, key: bytes, value: bytes, *, if_absent: bool = False) -> None:
        """Set a plain value, without expiry."""
        self._on_keys("SET", [key], value, *([b"NX"] if if_absent else []))

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return plain values, with retries."""
        return in_order(self._on_keys("MGET", keys), len(keys)) if keys else []

    def scan(self, prefix: bytes) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        """Yield batches of pairs; a key that is moved while scanning may come twice."""
        for keys in self._scan_keys(check_prefix(prefix)):
            if found := [(key, value) for key, value in zip(keys, self.get(keys), strict=True) if value is not None]:
                yield found

    def delete(self, prefix: bytes) -> int:
        """Delete by SCAN and UNLINK in batches; the next call resumes a killed one."""
        return sum(
            count for keys in self._scan_keys(check_prefix(prefix)) for _, count in self._on_keys("UNLINK", keys)
        )

    def fold(self, folds: Sequence[Fold]) -> list[bool]:
        """Replace the beginnings of records that still have them."""
        cut = [folds[part] for part in parts([fold.new + fold.old for fold in folds], RECORDS_PER_CALL, BYTES_PER_CALL)]
        answers = self._run_script(FOLD, cut, fold_arguments)
        return [bool(code) for codes in answers for code in codes]

    keeps_events = True

    def advance(self, slices: Sequence[Slice[Append]]) -> list[tuple[Advanced, list[int]]]:
        """Append events and move marks, in a script a slice.

        After a lost connection the caller does not know whether it ran: trying again finds the mark moved.
        """
        answers = self._run_slices(ADVANCE, slices, advance_arguments)
        return [(Advanced(code), sizes) for code, *sizes in answers]

    def place(self, slices: Sequence[Slice[Placed]]) -> list[tuple[Advanced, list[WriteResult]]]:
        """Set windowed records that are not ahead, in a script a slice."""
        answers = self._run_slices(PLACE, slices, place_arguments)
        return [(Advanced(code), [_RESULTS[each] for each in codes]) for code, *codes in answers]

    def check_writable(self, prefix: bytes) -> None:
        """Delete a key that nobody writes: a replica refuses that too, and a user without the right gets an error."""
        self._on_keys("UNLINK", [check_prefix(prefix) + b"(nothing)"])

    @abstractmethod
    def _run_script(
        self, script: str, parts: Sequence[Sequence[Item]], arguments: Arguments[Sequence[Item]]
    ) -> Iterable[list[int]]:
        """Return the script's code of each item, part by part, with retries."""

    @abstractmethod
    def _run_slices(
        self, script: str, slices: Sequence[Slice[Kept]], arguments: Arguments[Slice[Kept]]
    ) -> Iterable[list[int]]:
        """Return the script's answer to each slice, with retries."""

    @abstractmethod
    def _on_keys(self, command: str, keys: Sequence[bytes], *more: bytes) -> Sequence[tuple[Sequence[int], Any]]:
        """Run a command on keys, with retries; returns for each group of keys its places and the reply."""

    @abstractmethod
    def _scan_keys(self, prefix: bytes) -> Iterator[list[bytes]]:
        """Yield the keys under a prefix in batches, with retries."""


class RedisStore(RedisCommands):
    """An `OnlineStore` in one Redis (6.2 or later) or Valkey server.

    Reads wait ``read_timeout_ms`` and are never retried; opening the first connection may take ``connect_timeout_ms``.
    A server that has kept several reads waiting is only probed now and then. Writes wait ``write_timeout_ms`` for each
    answer; after a lost connection, and after errors that pass with a failover (`may_pass`), they are tried again for
    about as long, but not when the server does not answer.
    """

    def __init__(self, url: str, *, clock: Clock = system_clock, **timeouts_ms: int) -> None:
        super().__init__(clock=clock, **timeouts_ms)
        self._options = parsed_url(url)
        check_tls(self._options)
        self._node = RedisNode(self._options, self._deadlines)
        # The waits add up to nine tenths of the deadline: 0.1, 0.2, 0.4, 0.8 and three times 1 s for 5 s.
        backoff = ExponentialBackoff(cap=self._deadlines.write / 5, base=self._deadlines.write / 100)
        self._retry = Retry(backoff, BACKOFFS, (redis.RedisError,))

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value in one MGET. Raises OnlineStoreUnavailableError within the read deadline."""
        if not keys:
            return []
        # redis-py's own mget and pool cost as much again as the command itself, so it is packed and sent here.
        try:
            connection = self._node.reads.take()
            try:
                command: Any = (b"MGET", *keys)
                connection.send_packed_command([pack_command(command)], check_health=False)
                reply = checked_reply(connection.read_response(), len(keys))
            except BaseException as error:
                connection.disconnect()  # the next reader must not get a reply that is still under way
                self._node.reads.failed(error)
                raise
        except DRIVER_ERRORS as error:
            raise unavailable(self._node.location, self._deadlines.read, error) from error
        self._node.reads.give(connection)
        return reply

    def facts(self) -> Mapping[str, str]:
        """Return server, version, memory and its policy, evictions, and the difference of its clock to ours."""
        return self._node.facts(self._clock)

    def reader(self) -> AsyncReader:
        """Return a reader of the running event loop, with connections of its own."""
        from featurestore.online.redis.reader import RedisReader

        return RedisReader(self._options, self._deadlines)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._node.close()

    def _on_keys(self, command: str, keys: Sequence[bytes], *more: bytes) -> Sequence[tuple[Sequence[int], Any]]:
        return [(range(len(keys)), self._command(command, *keys, *more))]

    def _command(self, *arguments: bytes | str | int) -> Any:
        def run(connection: Any) -> Any:
            connection.send_command(*arguments, check_health=False)
            return connection.read_response()

        return self._retried(run)

    def _run_script(
        self, script: str, parts: Sequence[Sequence[Item]], arguments: Arguments[Sequence[Item]]
    ) -> list[list[int]]:
        return self._run(script, parts, arguments)

    def _run_slices(
        self, script: str, slices: Sequence[Slice[Kept]], arguments: Arguments[Slice[Kept]]
    ) -> list[list[int]]:
        return self._run(script, slices, arguments)

    def _run(self, script: str, parts: Sequence[Part], arguments: Arguments[Part]) -> list[list[int]]:
        """Run a script once per part, sending ahead of the answers."""
        replies: list[list[int]] = []

        def run(connection: Any, end: int) -> None:
            self._node.load(connection, script)
            sent = len(replies)
            while len(replies) < end:
                while sent < min(end, len(replies) + CALLS_UNDER_WAY):
                    connection.send_command("EVALSHA", digest_of(script), *arguments(parts[sent]), check_health=False)
                    sent += 1
                replies.append(connection.read_response())

        while len(replies) < len(parts):
            self._retried(partial(run, end=min(len(parts), len(replies) + CALLS_PER_DEADLINE)))
        return replies

    def _retried(self, run: Callable[[Any], Result]) -> Result:
        def attempt() -> Result:
            connection = self._node.writes.take()
            try:
                result = run(connection)
            except BaseException as error:
                connection.disconnect()
                if isinstance(error, redis.exceptions.NoScriptError):
                    self._node.loaded.clear()
                if isinstance(error, redis.ResponseError):
                    self._node.writes.close()  # another server may answer at this address now
                raise
            self._node.writes.give(connection)
            return result

        with self._node.translated(self._deadlines.write):
            return self._retry.call_with_retry(
                attempt,
                lambda _: None,
                # A single server's redirection does not pass: this is the URL of a cluster's node, not of a cluster.
                is_retryable=lambda error: may_pass(error) and not isinstance(error, redis.exceptions.AskError),
            )

    def _scan_keys(self, prefix: bytes) -> Iterator[list[bytes]]:
        return scanned(self._command, prefix)


def scanned(ask: Callable[..., Any], prefix: bytes) -> Iterator[list[bytes]]:
    """Yield the keys under an exact prefix in batches; ``ask`` sends a command to a node, and returns None to stop."""
    cursor, pattern = 0, _GLOB.sub(rb"\\\1", prefix) + b"*"
    while (reply := ask("SCAN", cursor, "MATCH", pattern, "COUNT", RECORDS_PER_CALL)) is not None:
        cursor = int(reply[0])
        if keys := [key for key in reply[1] if key.startswith(prefix)]:
            yield keys
        if cursor == 0:
            return
