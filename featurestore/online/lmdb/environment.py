"""Opening the file of the embedded online store: once per process, after a fork, and only if it is intact."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb
from featurestore_registry.forks import ForkLock

from featurestore.errors import (
    FORK_HINT,
    NO_SPACE,
    DamagedRecordError,
    OnlineStoreError,
    OnlineStoreFullError,
    OnlineStoreUnavailableError,
)

MAX_READERS = 1024
_SLOT_BYTES = 64
"""The size of a reader's slot in the lock file; the header takes three, and there is one less than readers."""

FORMAT_KEY = b"\x00format"
FORMAT = b"1"
DATA_FILE = "data.mdb"
LOCK_FILE = "lock.mdb"
OWNER_ONLY = 0o600
"""The mode of new files: they hold feature values."""

# Of LMDB's meta page behind its 16-byte page header: magic, version, address, map size, then two tree roots of 48
# bytes, the first of which begins with the page size; last page number, transaction number.
_META = struct.Struct("=II8x8xI44x48xQQ")
_META_OFFSET = 16
_MAGIC = 0xBEEFC0DE
# A transaction that frees its own newest pages never writes them: the file ends before its last page until the
# writer pads it, a moment after the commit.
_PADDING_SECONDS = 0.05

_DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)
_NO_ROOM = NO_SPACE | {errno.EIO}  # LMDB reports a write cut short as EIO

_open: WeakValueDictionary[tuple[str, int], lmdb.Environment] = WeakValueDictionary()
"""This process's environments by path and inode: LMDB forbids opening a file twice. Closed with the last user."""
_lock = ForkLock()
_owner_pid = os.getpid()
FORK_PATIENCE_SECONDS = 10.0
"""A fork waits at most so long for LMDB calls: longer than most syncs of the disk take."""


class _AtWork:
    """A block that calls LMDB, during which no fork happens.

    A child must close inherited environments before it can open the same file. To close one, LMDB waits for the calls
    under way in it: for ever, if threads made them that the child does not have. So a fork waits for the blocks of
    other threads, and new blocks wait for the fork. Within a block nothing is opened.
    """

    def __init__(self) -> None:
        self._workers: set[int] = set()
        self._forker: int | None = None
        self._is_over = threading.Event()
        self.was_cut_off = False
        """Set in a child whose parent did not wait long enough: it can close nothing."""

    def __enter__(self) -> None:
        me = threading.get_ident()
        self._workers.add(me)  # before the check: the forking thread checks in the opposite order
        while self._forker is not None and self._forker != me:
            self._workers.discard(me)
            self._is_over.wait()
            self._workers.add(me)

    def __exit__(self, *_: object) -> None:
        self._workers.discard(threading.get_ident())

    def pause(self) -> None:
        """Wait until no other thread is within a block, and let no block begin."""
        me, give_up_s = threading.get_ident(), time.monotonic() + FORK_PATIENCE_SECONDS
        self._is_over.clear()
        self._forker = me
        while self._workers - {me} and time.monotonic() < give_up_s:
            time.sleep(0.0002)

    def go_on(self) -> None:
        """Let blocks begin again."""
        self._forker = None
        self._is_over.set()

    def begin_child(self) -> None:
        """Forget the parent's threads, which do not exist here."""
        me = threading.get_ident()
        if self._workers - {me}:
            import ctypes

            self.was_cut_off = True
            for inherited in list(_open.values()):  # the last reference must not close it either
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))
        self._workers &= {me}
        self._is_over = threading.Event()
        self.go_on()


at_work = _AtWork()


def _before_fork() -> None:
    _lock.__enter__()  # nothing is being opened either
    at_work.pause()


def _after_fork() -> None:
    at_work.go_on()
    _lock.__exit__()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=at_work.begin_child)


def inode_of(path: Path) -> int:
    """Return the inode of the folder's data file, 0 if there is none."""
    try:
        return (path / DATA_FILE).stat().st_ino
    except OSError:
        return 0


def open_environment(path: Path, map_bytes: int) -> lmdb.Environment:
    """Return this process's environment of a folder; makes a missing one.

    Raises DamagedRecordError for a file that is truncated, foreign or of another format version, and
    OnlineStoreUnavailableError where the folder cannot be used.
    """
    global _owner_pid
    with _lock, translated(path):
        if _owner_pid != os.getpid():
            if at_work.was_cut_off:
                raise OnlineStoreUnavailableError(
                    f"the online store {str(path)!r} cannot be opened in process {os.getpid()}: it was forked while "
                    f"its parent was writing to it for more than {FORK_PATIENCE_SECONDS:g} seconds.",
                    hint=FORK_HINT,
                )
            for inherited in list(_open.values()):
                inherited.close()  # the child's copy; its parent's environment is not touched
            _open.clear()
            _owner_pid = os.getpid()
        name = os.path.realpath(path)
        environment = _open.get((name, inode_of(path)))
        if environment is None:
            path.mkdir(parents=True, exist_ok=True)
            _check_length(path)
            _reserve_lock(path)
            # Without a sync of the meta page a power cut may undo the last commits but never damage them; the store
            # syncs at the end of each call instead of twice in every transaction.
            environment = lmdb.open(
                str(path), map_size=map_bytes, max_readers=MAX_READERS, metasync=False, mode=OWNER_ONLY
            )
            environment.reader_check()
            _check_format(path, environment)
            _open[(name, inode_of(path))] = environment
        return environment


def pad_file(path: Path, environment: lmdb.Environment) -> None:
    """Make the file as long as its last page says, so that a shorter one is known to be truncated."""
    whole = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    file = path / DATA_FILE
    if file.stat().st_size < whole:
        os.truncate(file, whole)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn LMDB's errors into ours."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise OnlineStoreFullError(
            f"the online store {str(path)!r} has reached the size of its map.",
            hint="Remove expired records with `fs gc`, or move to Redis.",
        ) from error
    except _DAMAGED as error:
        raise damaged_file(path, str(error)) from error
    except (lmdb.Error, OSError) as error:
        code = getattr(error, "code", None) or getattr(error, "errno", None)
        if code in _NO_ROOM:
            free = os.statvfs(path if path.exists() else path.anchor)
            raise OnlineStoreFullError(
                f"the disk of the online store {str(path)!r} did not take a write: {error}. "
                f"It has {free.f_bavail * free.f_frsize >> 20} MiB left; nothing of the batch was changed.",
                hint="Free some space, then run the same command again.",
            ) from error
        kind = OnlineStoreError if isinstance(error, lmdb.BadValsizeError) else OnlineStoreUnavailableError
        why, hint = str(error), ""
        if isinstance(error, OSError):
            why = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
            hint = f"Let this user read and write the folder {str(path)!r}; who reads also writes its {LOCK_FILE}."
        raise kind(f"the online store {str(path)!r} cannot be used: {why}.", hint=hint) from error


def damaged_file(path: Path, why: str) -> DamagedRecordError:
    """Return the error that names a damaged file and how to rebuild it."""
    return DamagedRecordError(
        f"the online store {str(path)!r} is damaged: {why}.",
        hint=f"Rebuild it: remove the folder {str(path)!r}, then run `fs materialize --republish --authoritative`.",
        path=str(path),
    )


def _reserve_lock(path: Path) -> None:
    """Allocate all blocks of the lock file: LMDB maps it, and a block that a full disk lacks would kill the process.

    Only before this process opens the environment: closing any descriptor of a file releases all of the process's
    locks on it.
    """
    with open(path / LOCK_FILE, "ab", opener=lambda name, flags: os.open(name, flags, OWNER_ONLY)) as file:
        found = os.fstat(file.fileno())
        size = max(found.st_size, _SLOT_BYTES * (MAX_READERS + 2))
        if found.st_blocks * 512 < size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def _check_format(path: Path, environment: lmdb.Environment) -> None:
    with environment.begin() as transaction:
        found = transaction.get(FORMAT_KEY)
        entries = transaction.stat()["entries"]
    if found is None and entries == 0:
        with environment.begin(write=True) as transaction:
            transaction.put(FORMAT_KEY, FORMAT)
        environment.sync(True)
    elif found != FORMAT:
        raise damaged_file(path, f"its format is {found!r} where this version reads {FORMAT!r}")


def _check_length(path: Path) -> None:
    """Refuse a file that ends before its last page: reading beyond the end of a map would kill the process."""
    if _missing_bytes(path) > 0:
        time.sleep(_PADDING_SECONDS)
    if (missing := _missing_bytes(path)) > 0:
        raise damaged_file(path, f"{DATA_FILE} is truncated, {missing} bytes are missing")


def _missing_bytes(path: Path) -> int:
    file = path / DATA_FILE
    if not file.exists() or file.stat().st_size == 0:
        return 0
    with file.open("rb") as opened:
        first = _meta(path, opened.read(_META_OFFSET + _META.size))
        opened.seek(first[0])
        second = _meta(path, opened.read(_META_OFFSET + _META.size))
    page_bytes, last_page, _ = max(first, second, key=lambda meta: meta[2])
    return (last_page + 1) * page_bytes - file.stat().st_size


def _meta(path: Path, page: bytes) -> tuple[int, int, int]:
    """Return (page size, last page, transaction) of a meta page."""
    if len(page) < _META_OFFSET + _META.size:
        raise damaged_file(path, f"{DATA_FILE} is cut off within its first pages")
    magic, _, page_bytes, last_page, transaction = _META.unpack_from(page, _META_OFFSET)
    if magic != _MAGIC:
        raise damaged_file(path, f"{DATA_FILE} is not an LMDB file")
    return page_bytes, last_page, transaction
