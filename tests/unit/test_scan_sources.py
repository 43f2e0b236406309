"""DuckDB's own on the way to a source: states of files, row numbers, connections and when they start."""

from __future__ import annotations

import os
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest
from support.sources import instants, stage, staged_rows, table_of, view_of, write

from featurestore.definitions import ParquetSource
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings, Session
from featurestore.engine.interface import SourceFile
from featurestore.errors import EngineError, EntityFrameError, SourceError, SourceFileError, SourceSchemaError
from featurestore.materialization.spans import _fingerprint


def test_a_file_s_state_is_its_size_and_time_as_watermarks_know_them(tmp_path):
    path = write(tmp_path / "data/a.parquet", table_of())
    source = ParquetSource("flights", "data/a.parquet", "at")
    (file,) = open_engine(tmp_path).sources.files(source)
    state = path.stat()
    assert file.state == f"{state.st_size}\0{state.st_mtime_ns}"
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert open_engine(tmp_path).sources.files(source) != (file,)


def test_fingerprints_of_files_are_those_that_stored_watermarks_hold():
    files = [SourceFile("data/a.parquet", "10\0" + "20"), SourceFile("data/b.parquet", "1\0" + "2")]
    assert _fingerprint(files) == "05ed36306752e476"


def test_an_object_store_is_not_read_yet(tmp_path):
    with pytest.raises(SourceError, match=r"s3://bucket/data is not a local path"):
        open_engine(tmp_path).sources.files(ParquetSource("flights", "s3://bucket/data", "at"))


@pytest.mark.parametrize("name", ["file_row_number", "FILE_INDEX"])
def test_a_column_that_would_hide_row_numbers_is_refused_and_left_out_by_sql(tmp_path, name):
    # Two corrections of one instant: the later row wins by its place in the file.
    table = table_of(k=pa.array([1, 1]), at=instants(5, 5), v=pa.array([1.0, 2.0]))
    write(tmp_path / "data.parquet", table.append_column(name, pa.array([0, 0])))
    with pytest.raises(SourceSchemaError, match=f"column '{name}' has a name by which the engine finds rows"):
        stage(tmp_path, view_of())
    with pytest.raises(SourceSchemaError, match="rename it, or leave it out with sql="):
        open_engine(tmp_path).sources.first_event_us(view_of())
    rows = staged_rows(tmp_path, view_of(sql='SELECT k, "at", v FROM flights'))
    assert [row["v"] for row in rows] == [2.0]


def test_files_that_disagree_are_found_by_what_is_said(tmp_path):
    texts = ["string", "dictionary", "string", "dictionary", "large_string", "string_view"]
    for decade, kind in enumerate(texts):
        column = pa.array(["x", "y"]).dictionary_encode() if kind == "dictionary" else pa.array(["x", "y"])
        column = column if kind == "dictionary" else column.cast(getattr(pa, kind)())
        write(tmp_path / f"data/decade={decade}/a.parquet", table_of(k=pa.array([1, 1]), at=instants(5, 6), v=column))
    write(tmp_path / "data/decade=7/a.parquet", table_of(k=pa.array([1, 1]), at=instants(5, 6), v=pa.array([1, 2])))
    with pytest.raises(SourceSchemaError) as caught:
        open_engine(tmp_path).sources.columns(ParquetSource("flights", "data", "at"))
    (problem,) = caught.value.details["problems"]
    first = "string or dictionary<values=string, indices=int32, ordered=0> or large_string or others"
    assert problem == (f"column 'v' is int64 in decade=7/a.parquet, but {first} in decade=0/a.parquet and others")


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    from featurestore.engine.duck.staging import Staging

    path = write(tmp_path / "data.parquet", table_of())
    real = Staging._find

    def find(self):
        real(self)
        write(path, table_of(k=pa.array([7, 8, 9, 10])))

    monkeypatch.setattr(Staging, "_find", find)
    with pytest.raises(SourceFileError, match=r"data\.parquet changed while it was read"):
        stage(tmp_path, view_of())


def test_what_the_engine_cannot_do_is_an_engine_error(tmp_path):
    write(tmp_path / "data.parquet", table_of())
    with pytest.raises(EngineError, match="could not start"):
        stage(tmp_path, view_of(), settings=EngineSettings(memory_limit="a lot"))


def test_what_was_prepared_in_vain_is_told_by_the_next_call(tmp_path):
    engine = open_engine(tmp_path, EngineSettings(memory_limit="a lot"))
    engine.prepare()
    write(tmp_path / "data.parquet", table_of())
    with pytest.raises(EngineError, match="could not start"):
        engine.sources.first_event_us(view_of())


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_connection_sees_its_files_alone(tmp_path, is_prepared):
    session = Session(tmp_path, EngineSettings())
    files = [tmp_path / "seen.parquet", tmp_path / "other.parquet"]
    for file in files:
        write(file, table_of())
    if is_prepared:
        session.prepare()
        session.prepare()
    with session.open(reads=files[:1]) as connection:
        assert connection.execute(f"SELECT count(*) FROM '{files[0]}'").fetchall() == [(3,)]
        for sql in (f"SELECT * FROM '{files[1]}'", f"COPY (SELECT 1) TO '{tmp_path / 'out'}'", "SET threads = 1"):
            with pytest.raises(duckdb.Error, match=r"disabled|locked"):
                connection.execute(sql)


def test_sql_of_our_own_shares_a_database_that_sees_the_folders_asked_for(tmp_path):
    repo, table, aside = tmp_path / "repo", tmp_path / "table", tmp_path / "aside"
    for folder in (repo, table, aside):
        folder.mkdir()
        write(folder / "a.parquet", table_of())
    session = Session(repo, EngineSettings())
    with session.reading([repo / "a.parquet"]) as connection:
        connection.execute("CREATE TEMP TABLE kept AS SELECT 1")
        with session.reading([aside / "a.parquet"]) as inner, pytest.raises(duckdb.PermissionException):
            inner.execute(f"SELECT * FROM '{repo / 'a.parquet'}'")  # a block in a block is alone and locked
    first = session._kept
    with session.reading([repo / "sub" / "b.parquet"]) as connection:
        assert session._kept is first
        with pytest.raises(duckdb.CatalogException, match="kept"):
            connection.execute("SELECT * FROM kept")
    assert session._kept is first
    with session.reading([table / "a.parquet"]) as connection:  # another folder: another database, which sees both
        assert session._kept is not first
        counts = [f"SELECT count(*) FROM '{folder / 'a.parquet'}'" for folder in (repo, table)]
        assert [connection.execute(count).fetchone() for count in counts] == [(3,), (3,)]
        for sql in (f"SELECT * FROM '{aside / 'a.parquet'}'", f"COPY (SELECT 1) TO '{aside / 'out'}'"):
            with pytest.raises(duckdb.PermissionException):
                connection.execute(sql)
        for sql in ("SET enable_external_access = true", "SET allowed_directories = ['/']"):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)


def test_links_lead_the_shared_database_where_they_point(tmp_path):
    repo, real = tmp_path / "repo", tmp_path / "real"
    repo.mkdir()
    real.mkdir()
    write(real / "a.parquet", table_of())
    (repo / "folder").symlink_to(real)
    (repo / "file.parquet").symlink_to(real / "a.parquet")
    for path in (repo / "folder" / "a.parquet", repo / "file.parquet"):
        session = Session(repo, EngineSettings())
        with session.reading([path]) as connection:
            assert connection.execute(f"SELECT count(*) FROM '{path}'").fetchone() == (3,)
        assert session._kept is not None


@pytest.mark.parametrize("folder", ["", "/", "/tmp/odd[1]", "/tmp/odd*"])
def test_no_folder_that_stands_for_others_is_shown_to_the_shared_database(tmp_path, folder):
    session = Session(tmp_path, EngineSettings())
    with session.reading([f"{folder}/a.parquet"]) as connection, pytest.raises(duckdb.Error, match="locked"):
        connection.execute("SET threads = 1")
    assert session._kept is None


def test_a_database_is_not_used_again_after_an_error(tmp_path):
    session = Session(tmp_path, EngineSettings())
    with pytest.raises(ZeroDivisionError), session.reading([tmp_path / "a.parquet"]):
        raise ZeroDivisionError
    assert session._kept is None
    with session.reading([tmp_path / "a.parquet"]) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_sql_of_users_runs_in_a_database_of_its_own(tmp_path):
    write(tmp_path / "data.parquet", table_of())
    engine = open_engine(tmp_path, EngineSettings())
    engine.sources.first_event_us(view_of())
    kept = engine.sources._session._kept
    assert kept is not None
    engine.sources.first_event_us(view_of(sql='SELECT k, "at", v FROM flights'))
    assert engine.sources._session._kept is kept
    with pytest.raises(EntityFrameError, match=r"disabled|Permission"):
        engine.queries.query(f"SELECT * FROM '{tmp_path / 'data.parquet'}'", {}, {})


FORKED = """
import os, sys, time
from pathlib import Path
from featurestore.engine.duck.session import EngineSettings, Session

session = Session(Path(sys.argv[1]), EngineSettings())
session.prepare()
time.sleep(float(sys.argv[2]))
child = os.fork()
if child and os.waitpid(child, 0)[1]:
    sys.exit("the child failed")
print("parent" if child else "child", session.connect().execute("SELECT 1").fetchall(), flush=True)
session.prepare()
with session.reading([Path(sys.argv[1]) / "a"]) as connection:  # kept when the next child comes
    connection.execute("SELECT 1")
    if child:
        inside = os.fork()  # and one while it is in use
        if not inside:
            with session.reading([Path(sys.argv[1]) / "a"]) as own:
                os._exit(own.execute("SELECT 0").fetchall()[0][0])
        assert os.waitpid(inside, 0)[1] == 0
if child and os.fork() == 0:
    with session.reading([Path(sys.argv[1]) / "a"]) as connection:
        os._exit(connection.execute("SELECT 0").fetchall()[0][0])
if child:
    assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_child_does_not_wait_for_what_its_parent_prepared(tmp_path, seconds):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["child [(1,)]", "parent [(1,)]"]


ENDING = """
import sys, threading
from pathlib import Path
from featurestore.engine.duck.session import EngineSettings, Session

def prepare_late():
    threading.main_thread().join()
    session = Session(Path(sys.argv[1]), EngineSettings())
    session.prepare()
    print(session.connect().execute("SELECT 1").fetchall())

threading.Thread(target=prepare_late).start()
"""


def test_nothing_is_prepared_where_python_ends(tmp_path):
    command = [sys.executable, "-c", ENDING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[(1,)]\n", "")
