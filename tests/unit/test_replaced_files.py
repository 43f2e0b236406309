"""Files that a command is told to write: what the path leads to is replaced in one step, or refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import InputError
from featurestore.training.outputs import write_rows, write_text

Write = Callable[[Path], None]


def text(path: Path) -> None:
    write_text("page", path)


def rows(path: Path) -> None:
    write_rows(pa.table({"a": [1]}), path)


@pytest.fixture(params=[text, rows])
def write(request: pytest.FixtureRequest) -> Write:
    made: Write = request.param
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_written(path: Path) -> bool:
    return path.read_bytes() == b"page" or pq.read_table(path).to_pydict() == {"a": [1]}


def test_a_link_is_followed_and_stays(tmp_path: Path, write: Write) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far/real").write_text("before")
    (tmp_path / "link").symlink_to("far/real")
    (tmp_path / "dangling").symlink_to("far/new")
    for name, leads_to in (("link", "far/real"), ("dangling", "far/new")):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert is_written(tmp_path / leads_to)
    assert sorted(each.name for each in (tmp_path / "far").iterdir()) == ["new", "real"]


def test_a_new_file_has_the_mode_of_the_umask_and_another_keeps_its_own(tmp_path: Path, write: Write) -> None:
    (tmp_path / "there").write_text("before")
    (tmp_path / "there").chmod(0o640)
    before = os.umask(0o077)
    try:
        write(tmp_path / "new")
        write(tmp_path / "there")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "new"), mode(tmp_path / "there")) == (0o600, 0o640)


def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, write: Write) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name in ("pipe", "folder", "round", "to_pipe"):
        with pytest.raises(InputError, match=f"{name} is no file that can be replaced"):
            write(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert len([*tmp_path.iterdir()]) == 4


def test_the_file_that_standard_output_goes_to_is_refused(tmp_path: Path) -> None:
    code = "from pathlib import Path; from featurestore.training.outputs import write_text; "
    code += "print('said', flush=True); write_text('page', Path('/dev/stdout'))"
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, check=False)
    assert b"/dev/stdout is no file that can be replaced" in done.stderr
    assert (tmp_path / "out").read_text() == "said\n"


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        write(tmp_path / "none/x")
    (tmp_path / "x").write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_text("\ud800", tmp_path / "x")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]
