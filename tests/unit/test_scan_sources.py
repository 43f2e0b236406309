"""Which files a source has, what their footers say, and what is wrong with them: found before any row is read."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import instants, stage, staged_rows, table_of, view_of, write

from featurestore.definitions import ParquetSource
from featurestore.engine.duck.engine import DuckEngine
from featurestore.engine.duck.session import EngineSettings, Session
from featurestore.engine.interface import SourceFile
from featurestore.engine.schema import check_columns
from featurestore.errors import EngineError, SourceError, SourceFileError, SourceSchemaError
from featurestore.materialization.spans import _fingerprint
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp

KEPT = ["a.parquet", "b/c.parquet", "b/d=1/e.parquet"]
LEFT_OUT = ["_x.parquet", ".h.parquet", "b/_tmp/y.parquet", "b/.git/z.parquet", "b/notes.txt", "q.csv"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*KEPT, *LEFT_OUT]:
        write(tmp_path / "data" / name, table_of())
    return tmp_path


def names(root: Path, path: str) -> list[str]:
    return [file.path for file in DuckEngine(root).files(ParquetSource("flights", path, "at"))]


def test_a_folder_is_read_with_all_below_it_but_what_is_hidden(folder):
    assert names(folder, "data") == [f"data/{name}" for name in KEPT]
    assert names(folder, "data/") == [f"data/{name}" for name in KEPT]
    assert names(folder, str(folder / "data")) == [f"data/{name}" for name in KEPT]


def test_a_glob_and_a_file(folder):
    assert names(folder, "data/*.parquet") == ["data/a.parquet"]
    assert names(folder, "data/**/*.parquet") == [f"data/{name}" for name in KEPT]
    assert names(folder, "data/b/[cd]*.parquet") == ["data/b/c.parquet"]
    assert names(folder, "data/a.parquet") == ["data/a.parquet"]
    # What the pattern spells out is meant, hidden or not.
    assert names(folder, "data/b/_tmp/*.parquet") == ["data/b/_tmp/y.parquet"]
    assert names(folder, "data/_x.parquet") == ["data/_x.parquet"]


def test_files_outside_the_repo_keep_their_whole_path(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write(elsewhere / "f.parquet", table_of())
    assert names(folder, str(path)) == [str(path)]
    assert len(staged_rows(folder, view_of(str(path)))) == 3


def test_a_file_s_state_is_its_size_and_time_as_watermarks_know_them(folder):
    source = ParquetSource("flights", "data/a.parquet", "at")
    (file,) = DuckEngine(folder).files(source)
    state = (folder / "data/a.parquet").stat()
    assert file.state == f"{state.st_size}\0{state.st_mtime_ns}"
    os.utime(folder / "data/a.parquet", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert DuckEngine(folder).files(source) != (file,)


def test_fingerprints_of_files_are_those_that_stored_watermarks_hold():
    files = [SourceFile("data/a.parquet", "10\0" + "20"), SourceFile("data/b.parquet", "1\0" + "2")]
    assert _fingerprint(files) == "05ed36306752e476"


@pytest.mark.parametrize("path", ["nowhere.parquet", "nowhere/*.parquet", "empty"])
def test_a_source_without_files_is_told(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceFileError, match=r"'flights'.*matches no Parquet file") as caught:
        names(tmp_path, path)
    assert caught.value.details == {"source": "flights", "path": path}


def test_an_object_store_is_not_read_yet(tmp_path):
    with pytest.raises(SourceError, match=r"s3://bucket/data is not a local path"):
        names(tmp_path, "s3://bucket/data")


@pytest.mark.parametrize(
    "name", ["we'ird.parquet", "sp ace.parquet", "star*.parquet", "[1].parquet", "é✈.parquet", "%41.parquet"]
)
def test_any_file_name_is_read(tmp_path, name):
    write(tmp_path / "data" / name, table_of())
    write(tmp_path / "data" / "starry.parquet", table_of(k=pa.array([7, 8])))
    write(tmp_path / "data" / "1.parquet", table_of(k=pa.array([7, 8])))
    assert len(staged_rows(tmp_path, view_of(f"data/{name}"))) == 3


def test_hive_partitions_are_strings(tmp_path):
    for day, city in (("2013-01-01", "a%2Fb"), ("01", "x"), ("NULL", "__HIVE_DEFAULT_PARTITION__")):
        write(tmp_path / "data" / f"day={day}" / f"city={city}" / "f.parquet", table_of(k=pa.array([len(day)])))
    view = view_of("data", features={"day": String, "city": String, "v": Float64})
    columns = DuckEngine(tmp_path).columns(view)
    assert {c.name: c.value_type for c in columns} == {
        "k": Int64, "at": Timestamp, "v": Float64, "day": String, "city": String,
    }  # fmt: skip
    found = {(row["day"], row["city"]) for row in staged_rows(tmp_path, view)}
    assert found == {("2013-01-01", "a/b"), ("01", "x"), ("NULL", None)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"carrier,delay\nUA,5\n", "magic bytes"),
        (b"PAR1", "4 bytes"),
        (b"PAR1" * 3, "cannot be read"),
    ],
    ids=["empty", "foreign", "only magic", "no footer"],
)
def test_a_file_that_is_no_parquet_is_named(tmp_path, content, reason):
    write(tmp_path / "data" / "a.parquet", table_of())
    (tmp_path / "data" / "bad.parquet").write_bytes(content)
    for call in (DuckEngine(tmp_path).columns, DuckEngine(tmp_path).first_event_us):
        with pytest.raises(SourceFileError, match=r"bad\.parquet cannot be read") as caught:
            call(view_of("data"))
        assert reason in str(caught.value)
        assert caught.value.details["path"].endswith("bad.parquet")
    with pytest.raises(SourceFileError, match=r"bad\.parquet"):
        stage(tmp_path, view_of("data"))
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_truncated_file_is_named_wherever_it_was_cut(tmp_path):
    whole = write(tmp_path / "data.parquet", table_of(k=pa.array(range(1_000)))).read_bytes()
    for length in (1, 7, 8, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        (tmp_path / "data.parquet").write_bytes(whole[:length])
        with pytest.raises(SourceFileError, match=r"data\.parquet cannot be read"):
            stage(tmp_path, view_of())


def test_flipped_bits_in_a_footer_never_pass_as_another_error(tmp_path):
    """A flip may hit a name or a statistic and go unnoticed; what is noticed is told as the source's fault."""
    whole = write(tmp_path / "data.parquet", table_of(k=pa.array(range(1_000)))).read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    chance = random.Random(3)
    noticed = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(footer, len(whole) - 8)] ^= 1 << chance.randrange(8)
        (tmp_path / "data.parquet").write_bytes(damaged)
        try:
            stage(tmp_path, view_of())
        except SourceError:
            noticed += 1
    assert noticed > 20


def test_damage_within_the_data_is_told_with_the_file(tmp_path):
    write(tmp_path / "data" / "a.parquet", table_of())
    path = write(tmp_path / "data" / "b.parquet", table_of(k=pa.array(range(10_000))), compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:600] = b"\xff" * 596
    path.write_bytes(content)
    with pytest.raises(SourceFileError, match=r"b\.parquet cannot be read"):
        stage(tmp_path, view_of("data"))


def test_text_that_is_no_utf8_is_the_sources_fault(tmp_path):
    raw = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe"))
    write(tmp_path / "data.parquet", pa.table({"k": [1], "at": instants(1), "v": raw}))
    with pytest.raises(SourceError, match=r"(?i)utf"):
        stage(tmp_path, view_of(features={"v": String}))


def test_files_that_agree_in_a_wider_type_are_read_as_it(tmp_path):
    write(tmp_path / "data" / "1.parquet", table_of(k=pa.array([1], pa.int8()), v=pa.array([0.1], pa.float32())))
    write(tmp_path / "data" / "2.parquet", table_of(k=pa.array([2**40]), v=pa.array([0.1])))
    write(tmp_path / "data" / "3.parquet", table_of(k=pa.array([3], pa.uint16()), v=pa.array([7], pa.int32())))
    write(tmp_path / "data" / "4.parquet", pa.table({"at": instants(4), "k": pa.array([4], pa.uint32())}))
    write(
        tmp_path / "data" / "5.parquet", table_of(k=pa.array([5]), v=pa.array([None], pa.null()), more=pa.array(["x"]))
    )
    columns = DuckEngine(tmp_path).columns(ParquetSource("flights", "data", "at"))
    assert {c.name: c.value_type for c in columns} == {"k": Int64, "at": Timestamp, "v": Float64, "more": String}
    # Float32 and Int32 are no common type of DuckDB's own that would hold both.
    found = {row["k"]: row["v"] for row in staged_rows(tmp_path, view_of("data"))}
    assert found == {1: 0.10000000149011612, 2**40: 0.1, 3: 7.0, 4: None, 5: None}
    sql = view_of("data", features={"v": Float64, "more": String}, sql='SELECT more, v, k, "at" FROM flights')
    assert {row["k"]: (row["v"], row["more"]) for row in staged_rows(tmp_path, sql)} == {
        1: (0.10000000149011612, None), 2**40: (0.1, None), 3: (7.0, None), 4: (None, None), 5: (None, "x"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1.5]), pa.array([True])),
        (pa.array([{"a": 1}]), pa.array([{"a": "x"}])),
        (pa.array([[1]]), pa.array([["x"]])),
    ],
    ids=["int and text", "double and bool", "structs", "lists"],
)
def test_files_that_disagree_are_named_with_column_and_types(tmp_path, one, other):
    write(tmp_path / "data" / "a.parquet", table_of(v=one))
    write(tmp_path / "data" / "b.parquet", table_of(v=other))
    with pytest.raises(SourceSchemaError, match=r"'flights': its files disagree") as caught:
        DuckEngine(tmp_path).columns(ParquetSource("flights", "data", "at"))
    (problem,) = caught.value.details["problems"]
    kinds = (str(kind).replace("item", "element") for kind in (one.type, other.type))
    for part in ("'v'", *kinds, "a.parquet", "b.parquet"):
        assert part in problem


def test_columns_that_differ_only_in_case_are_refused(tmp_path):
    write(tmp_path / "one.parquet", table_of().append_column("V", pa.array([1, 2, 3])))
    with pytest.raises(SourceSchemaError, match="'v' and 'V' differ only in case"):
        DuckEngine(tmp_path).columns(view_of("one.parquet"))
    write(tmp_path / "data" / "a.parquet", table_of())
    write(tmp_path / "data" / "b.parquet", table_of().rename_columns(["K", "at", "v"]))
    with pytest.raises(SourceSchemaError, match="'k' and 'K' differ only in case"):
        DuckEngine(tmp_path).columns(view_of("data"))


@pytest.mark.parametrize("name", ["v", "k", "at", "unread"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, name):
    twice = table_of(unread=pa.array([1, 2, 3]))
    write(tmp_path / "one.parquet", twice.append_column(name, twice[name]))
    with pytest.raises(SourceSchemaError, match=rf"one\.parquet: two columns are called '{name}'"):
        DuckEngine(tmp_path).columns(view_of("one.parquet"))


@pytest.mark.parametrize("name", ["v", "value"])
def test_a_column_that_sql_makes_twice_is_refused(tmp_path, name):
    write(tmp_path / "one.parquet", table_of())
    sql = f'SELECT k, "at", v AS {name}, 2 * v AS {name} FROM flights'
    view = view_of("one.parquet", features={name: Float64}, sql=sql)
    with pytest.raises(SourceSchemaError, match=f"two columns are called '{name}'"):
        stage(tmp_path, view)


@pytest.mark.parametrize("name", ["file_row_number", "FILE_INDEX"])
def test_a_column_that_would_hide_row_numbers_is_refused_and_left_out_by_sql(tmp_path, name):
    # Two corrections of one instant: the later row wins by its place in the file.
    table = table_of(k=pa.array([1, 1]), at=instants(5, 5), v=pa.array([1.0, 2.0]))
    write(tmp_path / "data.parquet", table.append_column(name, pa.array([0, 0])))
    with pytest.raises(SourceSchemaError, match=f"column '{name}' has a name by which the engine finds rows"):
        stage(tmp_path, view_of())
    with pytest.raises(SourceSchemaError, match="rename it, or leave it out with sql="):
        DuckEngine(tmp_path).first_event_us(view_of())
    rows = staged_rows(tmp_path, view_of(sql='SELECT k, "at", v FROM flights'))
    assert [row["v"] for row in rows] == [2.0]


def test_names_are_compared_without_case_and_kept_as_declared(tmp_path):
    write(tmp_path / "data.parquet", table_of().rename_columns(["K", "At", "V"]))
    rows = staged_rows(tmp_path, view_of())
    assert [set(row) & {"k", "v", "K", "V"} for row in rows] == [{"k", "v"}] * 3


def test_every_kind_of_column_is_told(tmp_path):
    kinds = {
        "int8": Int32, "uint16": Int32, "int32": Int32, "uint32": Int64, "int64": Int64, "uint64": None,
        "float": Float32, "double": Float64, "bool": Bool, "string": String, "large_string": String,
        "binary": Bytes, "date32": Date,
    }  # fmt: skip
    columns = {name: pa.array([None], pa.type_for_alias(name)) for name in kinds}
    more = {
        "half": (pa.float16(), Float32), "decimal": (pa.decimal128(38, 10), Decimal(38, 10)),
        "wide": (pa.decimal256(50, 2), None), "list": (pa.list_(pa.list_(pa.int16())), Array(Array(Int32))),
        "ns": (pa.timestamp("ns"), Timestamp), "zoned": (pa.timestamp("ms", tz="Asia/Tokyo"), Timestamp),
        "time": (pa.time64("us"), None), "struct": (pa.struct([("a", pa.int64())]), None),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), String), "fixed": (pa.binary(4), Bytes),
        "duration": (pa.duration("us"), None),
    }  # fmt: skip
    columns |= {name: pa.array([None], kind) for name, (kind, _) in more.items()}
    write(tmp_path / "data.parquet", pa.table(columns))
    found = {c.name: c.value_type for c in DuckEngine(tmp_path).columns(ParquetSource("flights", "data.parquet", "ns"))}
    assert found == {**kinds, **{name: value_type for name, (_, value_type) in more.items()}}


def test_every_problem_of_a_view_is_told_at_once(tmp_path):
    table = pa.table(
        {"k": ["1"], "at": ["2013"], "known": [1.5], "wide": pa.array([1]), "v": pa.array([1], pa.uint64()), "nt": [1]}
    )
    write(tmp_path / "data.parquet", table)
    view = view_of(created="known", features={"wide": Int32, "v": Float64, "nte": Int64, "gone": Bool})
    engine = DuckEngine(tmp_path)
    with pytest.raises(SourceSchemaError, match="'profile' does not fit source 'flights'") as caught:
        check_columns(view, engine.columns(view))
    assert caught.value.details["problems"] == [
        "join key 'k' is declared Int64, found string (String)",
        "event time 'at' must be a timestamp or a date, found string",
        "created time 'known' must be a timestamp or a date, found double",
        "feature 'wide' is declared Int32, found int64 (Int64)",
        "feature 'v' is declared Float64, found uint64",
        "feature 'nte' is missing. Did you mean 'nt'?",
        "feature 'gone' is missing. Known are: at, k, known, nt, v, wide.",
    ]
    with pytest.raises(SourceSchemaError):
        stage(tmp_path, view)
    with pytest.raises(SourceSchemaError):
        engine.first_event_us(view)


def test_drift_is_found_before_any_row_is_read(tmp_path):
    """The file's data are damaged too: had a row been read, the error would be another one."""
    path = write(tmp_path / "data.parquet", table_of(v=pa.array(["x"] * 1_000)), compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(SourceSchemaError, match="feature 'v' is declared Float64, found string"):
        stage(tmp_path, view_of())


def test_without_a_schema_keys_and_times_are_checked(tmp_path):
    write(tmp_path / "data.parquet", table_of())
    view = view_of().replaced(fields=None)
    check_columns(view, DuckEngine(tmp_path).columns(view))


def test_a_column_of_nulls_fits_every_type(tmp_path):
    nothing = pa.array([None] * 2, pa.null())
    write(tmp_path / "data.parquet", table_of(at=instants(1, 2), k=pa.array([1, 2]), **dict.fromkeys("abcd", nothing)))
    features = {"a": Float64, "b": Array(String), "c": Decimal(10, 2), "d": Timestamp}
    rows = staged_rows(tmp_path, view_of(features=features))
    assert [[row[name] for name in "abcd"] for row in rows] == [[None] * 4] * 2


def test_a_source_of_null_times_or_keys_gives_nothing(tmp_path):
    write(tmp_path / "data.parquet", table_of(at=pa.array([None, None], pa.null())))
    staged = stage(tmp_path, view_of())
    assert (staged.read, staged.null_times, staged.path) == (2, 2, None)
    assert DuckEngine(tmp_path).first_event_us(view_of()) is None
    write(tmp_path / "data.parquet", table_of(k=pa.array([None, None], pa.null())))
    assert stage(tmp_path, view_of()).null_keys == 2


def test_an_empty_file_with_columns_is_no_error(tmp_path):
    write(tmp_path / "data.parquet", table_of().slice(0, 0))
    staged = stage(tmp_path, view_of())
    assert (staged.read, staged.appended, staged.path) == (0, 0, None)
    assert DuckEngine(tmp_path).first_event_us(view_of()) is None


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    from featurestore.engine.duck import scan

    path = write(tmp_path / "data.parquet", table_of())
    real = scan._Stage._find

    def find(self):
        real(self)
        write(path, table_of(k=pa.array([7, 8, 9, 10])))

    monkeypatch.setattr(scan._Stage, "_find", find)
    with pytest.raises(SourceFileError, match=r"data\.parquet changed while it was read"):
        stage(tmp_path, view_of())


def test_what_the_engine_cannot_do_is_an_engine_error(tmp_path):
    write(tmp_path / "data.parquet", table_of())
    with pytest.raises(EngineError, match="could not start"):
        stage(tmp_path, view_of(), settings=EngineSettings(memory_limit="a lot"))


def test_what_was_prepared_in_vain_is_told_by_the_next_call(tmp_path):
    engine = DuckEngine(tmp_path, EngineSettings(memory_limit="a lot"))
    engine.prepare()
    write(tmp_path / "data.parquet", table_of())
    with pytest.raises(EngineError, match="could not start"):
        engine.first_event_us(view_of())


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


def test_footers_are_read_again_when_a_file_changed(tmp_path):
    engine = DuckEngine(tmp_path)
    write(tmp_path / "data.parquet", table_of())
    assert len(engine.columns(view_of())) == 3
    write(tmp_path / "data.parquet", table_of().append_column("more", pa.array(["x"] * 3)))
    assert len(engine.columns(view_of())) == 4
    assert pq.read_metadata(tmp_path / "data.parquet").num_rows == 3
