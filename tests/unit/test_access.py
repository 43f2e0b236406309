"""What servers remember of tokens: what comes back, who may read it, what damage says, and writers at once."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from featurestore_registry.auth import Role, Token
from support.serving import until

from featurestore.project import access
from featurestore.project.access import FILE_NAME, MOST_REVOKED, Access, read_access, remember, reopen
from featurestore.server.http.door import Door

SEEN = Access("the registry held tokens", {"aa": 1, "bb": 2})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def token(token_id: str, **options: object) -> Token:
    return Token(token_id, token_id * 8, Role.READER, **options)  # type: ignore[arg-type]


def test_what_is_remembered_comes_back_and_grows(path: Path) -> None:
    remember(path, SEEN)
    assert read_access(path) == Access(SEEN.closed, SEEN.revoked, is_whole=True)
    remember(path, Access("another reason", {"cc": 3}))
    assert read_access(path) == Access(SEEN.closed, {"aa": 1, "bb": 2, "cc": 3}, is_whole=True)
    remember(path, Access())
    assert read_access(path).closed == SEEN.closed


def test_reopening_forgets_the_reason_and_no_revoked_token(path: Path) -> None:
    remember(path, SEEN)
    reopen(path, {"cc": 3})
    assert read_access(path) == Access(None, {"aa": 1, "bb": 2, "cc": 3}, is_whole=True)


def test_nothing_remembered_closes_nothing_and_makes_no_file(path: Path) -> None:
    assert read_access(path) == Access()
    door = Door(path.parents[1])
    assert door.take((), {}) == ()
    assert door.is_open()
    assert not path.parent.exists()
    path.parent.write_text("a file in the place of the folder")
    assert read_access(path) == Access()


def test_only_its_owner_may_read_it_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        remember(path, SEEN)
        remember(path, Access(None, {"cc": 3}))
    finally:
        os.umask(before)
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert modes == {"access.json": 0o600, "access.lock": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_flipped_bit_anywhere_says_closed(path: Path) -> None:
    reopen(path, SEEN.revoked)
    whole = path.read_bytes()
    assert read_access(path).closed is None
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        assert read_access(path) == Access(f"{path} was damaged"), place


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"7", b"{}", b'{"format": 1}', b'{"access": NaN, "format": 1}', b"[" * 100_000],
)
def test_foreign_files_say_closed(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_access(path).closed == f"{path} was damaged"


def test_a_file_of_another_format_and_one_that_cannot_be_read_say_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FORMAT_VERSION", 2)
    reopen(path, {})
    monkeypatch.undo()
    assert read_access(path).closed == f"{path} was damaged"
    path.unlink()
    path.mkdir()
    assert read_access(path).closed == f"{path} could not be read (Is a directory)"


def test_a_door_on_a_damaged_file_is_closed_says_so_once_and_makes_the_file_anew(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_text("damaged")
    assert not Door(path.parents[1]).is_open()
    assert caplog.text.count(f"{path} was damaged: this server is closed") == 1
    assert read_access(path).is_whole
    assert not Door(path.parents[1]).is_open()
    assert caplog.text.count("was damaged") == 1


def test_a_running_server_closes_when_its_file_is_damaged_and_restores_what_it_knows(path: Path) -> None:
    reopen(path, {"aa": 1})
    door = Door(path.parents[1])
    assert door.is_open()
    path.write_text("damaged")
    assert door.take((token("aa"),), {}) == ()
    assert not door.is_open()
    assert read_access(path).revoked == {"aa": 1}
    path.unlink()
    door.take((), {})
    assert read_access(path).closed
    assert read_access(path).revoked == {"aa": 1}


@pytest.mark.parametrize("held", [(token("aa"),), (token("aa", project="p"),), (token("aa", expires_at_us=1),)])
def test_any_token_closes_and_stays_so(path: Path, held: tuple[Token, ...]) -> None:
    door = Door(path.parents[1])
    assert door.take(held, {}) is held
    assert not door.is_open()
    assert door.take((), {}) == ()
    assert not door.is_open()
    assert not Door(path.parents[1]).is_open()


def test_a_revoked_token_closes_where_it_is_new(path: Path) -> None:
    door = Door(path.parents[1])
    door.take((), {"aa": 1})
    assert not door.is_open()
    again = Door(path.parents[1], reopening=True)
    again.take((), {"aa": 1, "bb": 2})
    again.reopen()
    assert again.is_open()
    again.take((), {"aa": 1, "bb": 2})
    assert again.is_open()
    again.take((), {"aa": 1, "bb": 2, "cc": 3})
    assert not again.is_open()


def test_a_door_that_reopens_decides_nothing_before(path: Path) -> None:
    remember(path, SEEN)
    before = path.read_bytes()
    door = Door(path.parents[1], reopening=True)
    door.take((token("dd"),), {"ee": 5})
    assert path.read_bytes() == before
    door.take((), {"ee": 5})
    door.reopen()
    assert read_access(path) == Access(None, {**SEEN.revoked, "ee": 5}, is_whole=True)


def test_doors_of_one_folder_learn_from_each_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = Door(path.parents[1]), Door(path.parents[1])
    one.take((token("aa"), token("bb")), {})
    other.take((), {})
    assert not other.is_open()
    one.take((token("bb"),), {"aa": 1})
    for _ in range(3):
        assert other.take((token("aa"), token("bb")), {}) == (token("bb"),)
    assert caplog.text.count("Token aa (without a name) stays refused") == 1


def test_a_closed_server_that_runs_on_does_not_undo_that_another_was_opened(path: Path) -> None:
    closed = Door(path.parents[1])
    closed.take((token("aa"),), {})
    closed.take((), {"aa": 1})
    opened = Door(path.parents[1], reopening=True)
    opened.take((), {"aa": 1})
    opened.reopen()
    closed.take((), {"aa": 1})
    assert not closed.is_open()
    opened.take((), {"aa": 1})
    assert opened.is_open()
    assert Door(path.parents[1]).is_open()
    closed.take((token("bb"),), {"aa": 1})  # a new token is news
    opened.take((), {"aa": 1})
    assert not opened.is_open()


def test_an_older_file_that_is_put_back_is_brought_up_to_date(path: Path) -> None:
    door = Door(path.parents[1])
    door.take((token("aa"),), {})
    older = path.read_bytes()
    door.take((), {"aa": 1})
    path.write_bytes(older)
    door.take((token("aa"),), {})
    assert read_access(path).revoked == {"aa": 1}


def test_so_many_are_remembered_those_revoked_last_and_written_once(path: Path) -> None:
    revoked = {f"{number:016x}": 1_000_000 - number for number in range(MOST_REVOKED + 5)}
    door = Door(path.parents[1])
    door.take((), revoked)
    kept = read_access(path)
    assert set(kept.revoked) == {f"{number:016x}" for number in range(MOST_REVOKED)}
    assert path.stat().st_size < 450_000
    written = path.stat().st_ino
    door.take((), revoked)
    assert path.stat().st_ino == written
    again = Door(path.parents[1], reopening=True)
    again.take((), revoked)
    again.reopen()
    again.take((), revoked)
    assert again.is_open()  # those that are not remembered are not new at every look


WRITER = """
import sys
from pathlib import Path
from featurestore.project.access import Access, remember
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    remember(path, Access("a reason" if number == 7 else None, {f"{name}{number}": number}))
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_writers_at_once_lose_nothing_of_each_other(path: Path) -> None:
    processes = [writer(path, name, 40) for name in "abc"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    kept = read_access(path)
    assert set(kept.revoked) == {f"{name}{number}" for name in "abc" for number in range(40)}
    assert (kept.closed, kept.is_whole) == ("a reason", True)


def test_a_writer_that_is_killed_leaves_a_whole_file_and_no_lock(path: Path) -> None:
    for round_ in range(3):
        process = writer(path, f"{round_}-", 100_000)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        until(lambda started=f"{round_}-20": started in read_access(path).revoked, seconds=20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = read_access(path)
        assert kept.is_whole
        assert f"{round_}-20" in kept.revoked
    remember(path, Access(None, {"after": 1}))
    assert "after" in read_access(path).revoked


def test_a_full_disk_leaves_the_old_file_and_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(path.parents[1])
    door.take((token("aa"),), {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):
            assert door.take((token("aa"),), {"aa": 1}) == ()
        assert path.read_bytes() == before
        assert caplog.text.count("access.json cannot be written (No space left on device)") == 1
    assert {found.name for found in path.parent.iterdir()} == {"access.json", "access.lock"}
    door.take((), {"aa": 1})  # what could not be written is, at the next look
    assert read_access(path).revoked == {"aa": 1}
