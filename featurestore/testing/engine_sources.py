"""What every engine must say about a source's files, their columns and their faults.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from featurestore.engine.schema import check_columns
from featurestore.errors import SourceError, SourceFileError, SourceSchemaError
from featurestore.testing.engine_project import (
    EngineProject,
    EngineSuite,
    damage,
    instants,
    paths_of,
    source_at,
    table_of,
    view_of,
    write_parquet,
)
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp

KEPT = ["a.parquet", "b/c.parquet", "b/d=1/e.parquet"]

LEFT_OUT = ["_x.parquet", ".h.parquet", "b/_tmp/y.parquet", "b/.git/z.parquet", "b/notes.txt", "q.csv"]


def filled(project: EngineProject) -> EngineProject:
    """Write a folder of files that belong to a source, and of others."""
    for name in [*KEPT, *LEFT_OUT]:
        project.write(f"data/{name}", table_of())
    return project


def paths(project: EngineProject, path: str) -> list[str]:
    """Return the paths of a source's files."""
    return [file.path for file in project.files(path)]


class EngineSourcesConformance(EngineSuite):
    """The suite."""

    def test_a_folder_is_read_with_all_below_it_but_what_is_hidden(self, project: EngineProject) -> None:
        filled(project)
        assert paths(project, "data") == [f"data/{name}" for name in KEPT]
        assert paths(project, "data/") == [f"data/{name}" for name in KEPT]
        assert paths(project, str(project.root / "data")) == [f"data/{name}" for name in KEPT]

    def test_a_glob_and_a_file(self, project: EngineProject) -> None:
        filled(project)
        assert paths(project, "data/*.parquet") == ["data/a.parquet"]
        assert paths(project, "data/**/*.parquet") == [f"data/{name}" for name in KEPT]
        assert paths(project, "data/b/[cd]*.parquet") == ["data/b/c.parquet"]
        assert paths(project, "data/a.parquet") == ["data/a.parquet"]
        # What the pattern spells out is meant, hidden or not.
        assert paths(project, "data/b/_tmp/*.parquet") == ["data/b/_tmp/y.parquet"]
        assert paths(project, "data/_x.parquet") == ["data/_x.parquet"]

    @pytest.mark.parametrize(
        "path", ["data", "data/*.parquet", "data/**/*.parquet", "data/b/[cd]*.parquet", "data/_x.parquet"]
    )
    def test_a_file_would_be_read_that_is_found_once_it_lies_there(self, project: EngineProject, path: str) -> None:
        places = [project.root / "data" / name for name in [*KEPT, *LEFT_OUT]]
        (project.root / "data").mkdir()
        before = [project.reads(path, place) for place in places]
        found = paths(filled(project), path)
        assert before == [place.relative_to(project.root).as_posix() in found for place in places]
        assert [project.reads(path, place) for place in places] == before
        assert not project.reads(path, project.root / "elsewhere.parquet")

    def test_files_outside_the_project_keep_their_whole_path(
        self, project: EngineProject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        filled(project)
        path = write_parquet(tmp_path_factory.mktemp("elsewhere") / "f.parquet", table_of())
        assert paths(project, str(path)) == [str(path)]
        assert len(project.rows(view_of(str(path)))) == 3

    def test_files_tell_when_they_may_hold_something_else(self, project: EngineProject) -> None:
        (file,) = filled(project).files("data/a.parquet")
        assert project.files("data/a.parquet") == (file,)
        digest = project.digest(file)
        project.write("data/a.parquet", table_of(k=pa.array(range(4))))
        (changed,) = project.files("data/a.parquet")
        assert (changed.path, changed.state == file.state) == (file.path, False)
        assert project.digest(changed) != digest
        project.write("data/a.parquet", table_of())
        assert project.digest(file) == digest
        (project.root / "data/a.parquet").unlink()
        with pytest.raises(SourceFileError, match=r"a\.parquet"):
            project.digest(file)

    @pytest.mark.parametrize("path", ["nowhere.parquet", "nowhere/*.parquet", "empty"])
    def test_a_source_without_files_is_told(self, project: EngineProject, path: Any) -> None:
        (project.root / "empty").mkdir()
        with pytest.raises(SourceFileError, match=r"'flights'.*matches no Parquet file") as caught:
            paths(project, path)
        assert caught.value.details == {"source": "flights", "path": path}

    @pytest.mark.parametrize(
        "name", ["we'ird.parquet", "sp ace.parquet", "star*.parquet", "[1].parquet", "é✈.parquet", "%41.parquet"]
    )
    def test_any_file_name_is_read(self, project: EngineProject, name: Any) -> None:
        project.write(f"data/{name}", table_of())
        project.write("data/starry.parquet", table_of(k=pa.array([7, 8])))
        project.write("data/1.parquet", table_of(k=pa.array([7, 8])))
        assert len(project.rows(view_of(f"data/{name}"))) == 3

    def test_hive_partitions_are_strings(self, project: EngineProject) -> None:
        for day, city in (("2013-01-01", "a%2Fb"), ("01", "x"), ("NULL", "__HIVE_DEFAULT_PARTITION__")):
            project.write(f"data/day={day}/city={city}/f.parquet", table_of(k=pa.array([len(day)])))
        view = view_of("data", features={"day": String, "city": String, "v": Float64})
        assert project.value_types(view) == {
            "k": Int64, "at": Timestamp, "v": Float64, "day": String, "city": String,
        }  # fmt: skip
        found = {(row["day"], row["city"]) for row in project.rows(view)}
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
    def test_a_file_that_is_no_parquet_is_named(self, project: EngineProject, content: Any, reason: Any) -> None:
        project.write("data/a.parquet", table_of())
        (project.root / "data" / "bad.parquet").write_bytes(content)
        for call in (project.columns, project.first_event_us):
            with pytest.raises(SourceFileError, match=r"bad\.parquet cannot be read") as caught:
                call(view_of("data"))
            assert reason in str(caught.value)
            assert caught.value.details["path"].endswith("bad.parquet")
        with pytest.raises(SourceFileError, match=r"bad\.parquet"):
            project.stage(view_of("data"))
        assert list(project.staging.iterdir()) == []

    def test_a_truncated_file_is_named_wherever_it_was_cut(self, project: EngineProject) -> None:
        whole = project.write("data.parquet", table_of(k=pa.array(range(1_000)))).read_bytes()
        for length in (1, 7, 8, len(whole) // 2, len(whole) - 9, len(whole) - 1):
            (project.root / "data.parquet").write_bytes(whole[:length])
            with pytest.raises(SourceFileError, match=r"data\.parquet cannot be read"):
                project.stage(view_of())

    def test_flipped_bits_in_a_footer_never_pass_as_another_error(self, project: EngineProject) -> None:
        """A flip may hit a name or a statistic and go unnoticed; if it is noticed, the error must blame the source."""
        whole = project.write("data.parquet", table_of(k=pa.array(range(1_000)))).read_bytes()
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        chance = random.Random(3)
        noticed = 0
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[chance.randrange(footer, len(whole) - 8)] ^= 1 << chance.randrange(8)
            (project.root / "data.parquet").write_bytes(damaged)
            try:
                project.stage(view_of())
            except SourceError:
                noticed += 1
        assert noticed > 20

    def test_damage_within_the_data_is_told_with_the_file(self, project: EngineProject) -> None:
        project.write("data/a.parquet", table_of())
        path = project.write("data/b.parquet", table_of(k=pa.array(range(10_000))), compression="zstd")
        damage(path, 4, 600)
        with pytest.raises(SourceFileError, match=r"b\.parquet cannot be read"):
            project.stage(view_of("data"))

    def test_text_that_is_no_utf8_is_the_sources_fault(self, project: EngineProject) -> None:
        raw = pa.StringArray.from_buffers(
            1, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")
        )
        project.write("data.parquet", pa.table({"k": [1], "at": instants(1), "v": raw}))
        with pytest.raises(SourceError, match=r"(?i)utf"):
            project.stage(view_of(features={"v": String}))

    def test_files_that_agree_in_a_wider_type_are_read_as_it(self, project: EngineProject) -> None:
        project.write("data/1.parquet", table_of(k=pa.array([1], pa.int8()), v=pa.array([0.1], pa.float32())))
        project.write("data/2.parquet", table_of(k=pa.array([2**40]), v=pa.array([0.1])))
        project.write("data/3.parquet", table_of(k=pa.array([3], pa.uint16()), v=pa.array([7], pa.int32())))
        project.write("data/4.parquet", pa.table({"at": instants(4), "k": pa.array([4], pa.uint32())}))
        project.write("data/5.parquet", table_of(k=pa.array([5]), v=pa.array([None], pa.null()), more=pa.array(["x"])))
        types = project.value_types(source_at("data"))
        assert types == {"k": Int64, "at": Timestamp, "v": Float64, "more": String}
        # Engines find types of their own for Float32 and Int32 that do not hold both.
        found = {row["k"]: row["v"] for row in project.rows(view_of("data"))}
        assert found == {1: 0.10000000149011612, 2**40: 0.1, 3: 7.0, 4: None, 5: None}
        sql = view_of("data", features={"v": Float64, "more": String}, sql='SELECT more, v, k, "at" FROM flights')
        assert {row["k"]: (row["v"], row["more"]) for row in project.rows(sql)} == {
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
    def test_files_that_disagree_are_named_with_column_and_types(
        self, project: EngineProject, one: Any, other: Any
    ) -> None:
        project.write("data/a.parquet", table_of(v=one))
        project.write("data/b.parquet", table_of(v=other))
        with pytest.raises(SourceSchemaError, match=r"'flights': its files disagree") as caught:
            project.columns(source_at("data"))
        (problem,) = caught.value.details["problems"]
        kinds = (str(kind).replace("item", "element") for kind in (one.type, other.type))
        for part in ("'v'", *kinds, "a.parquet", "b.parquet"):
            assert part in problem

    def test_columns_that_differ_only_in_case_are_refused(self, project: EngineProject) -> None:
        project.write("one.parquet", table_of().append_column("V", pa.array([1, 2, 3])))
        with pytest.raises(SourceSchemaError, match="'v' and 'V' differ only in case"):
            project.columns(view_of("one.parquet"))
        project.write("data/a.parquet", table_of())
        project.write("data/b.parquet", table_of().rename_columns(["K", "at", "v"]))
        with pytest.raises(SourceSchemaError, match="'k' and 'K' differ only in case"):
            project.columns(view_of("data"))

    @pytest.mark.parametrize("name", ["v", "k", "at", "unread"])
    def test_a_column_that_is_there_twice_is_refused(self, project: EngineProject, name: Any) -> None:
        twice = table_of(unread=pa.array([1, 2, 3]))
        project.write("one.parquet", twice.append_column(name, twice[name]))
        with pytest.raises(SourceSchemaError, match=rf"one\.parquet: two columns are called '{name}'"):
            project.columns(view_of("one.parquet"))

    @pytest.mark.parametrize("name", ["v", "value"])
    def test_a_column_that_sql_makes_twice_is_refused(self, project: EngineProject, name: Any) -> None:
        project.write("one.parquet", table_of())
        sql = f'SELECT k, "at", v AS {name}, 2 * v AS {name} FROM flights'
        view = view_of("one.parquet", features={name: Float64}, sql=sql)
        with pytest.raises(SourceSchemaError, match=f"two columns are called '{name}'"):
            project.stage(view)

    def test_names_are_compared_without_case_and_kept_as_declared(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of().rename_columns(["K", "At", "V"]))
        rows = project.rows(view_of())
        assert [set(row) & {"k", "v", "K", "V"} for row in rows] == [{"k", "v"}] * 3

    def test_every_kind_of_column_is_told(self, project: EngineProject) -> None:
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
        project.write("data.parquet", pa.table(columns))
        found = project.value_types(source_at("data.parquet", at="ns"))
        assert found == {**kinds, **{name: value_type for name, (_, value_type) in more.items()}}

    def test_every_problem_of_a_view_is_told_at_once(self, project: EngineProject) -> None:
        table = pa.table(
            {
                "k": ["1"],
                "at": ["2013"],
                "known": [1.5],
                "wide": pa.array([1]),
                "v": pa.array([1], pa.uint64()),
                "nt": [1],
            }
        )
        project.write("data.parquet", table)
        view = view_of(created="known", features={"wide": Int32, "v": Float64, "nte": Int64, "gone": Bool})
        with pytest.raises(SourceSchemaError, match="'profile' does not fit source 'flights'") as caught:
            check_columns(view, project.columns(view))
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
            project.stage(view)
        with pytest.raises(SourceSchemaError):
            project.first_event_us(view)

    def test_drift_is_found_before_any_row_is_read(self, project: EngineProject) -> None:
        """The file's data are damaged too: had a row been read, the error would be another one."""
        path = project.write("data.parquet", table_of(v=pa.array(["x"] * 1_000)), compression="zstd")
        damage(path, 4, 200)
        with pytest.raises(SourceSchemaError, match="feature 'v' is declared Float64, found string"):
            project.stage(view_of())

    def test_without_a_schema_keys_and_times_are_checked(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of())
        view = view_of().replaced(fields=None)
        check_columns(view, project.columns(view))

    def test_a_column_of_nulls_fits_every_type(self, project: EngineProject) -> None:
        nothing = pa.array([None] * 2, pa.null())
        project.write("data.parquet", table_of(at=instants(1, 2), k=pa.array([1, 2]), **dict.fromkeys("abcd", nothing)))
        features = {"a": Float64, "b": Array(String), "c": Decimal(10, 2), "d": Timestamp}
        rows = project.rows(view_of(features=features))
        assert [[row[name] for name in "abcd"] for row in rows] == [[None] * 4] * 2

    def test_a_source_of_null_times_or_keys_gives_nothing(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of(at=pa.array([None, None], pa.null())))
        staged = project.stage(view_of())
        assert (staged.read, staged.null_times, paths_of(staged)) == (2, 2, [])
        assert project.first_event_us(view_of()) is None
        project.write("data.parquet", table_of(k=pa.array([None, None], pa.null())))
        assert project.stage(view_of()).null_keys == 2

    def test_an_empty_file_with_columns_is_no_error(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of().slice(0, 0))
        staged = project.stage(view_of())
        assert (staged.read, staged.appended, paths_of(staged)) == (0, 0, [])
        assert project.first_event_us(view_of()) is None

    def test_footers_are_read_again_when_a_file_changed(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of())
        assert len(project.columns(view_of())) == 3
        project.write("data.parquet", table_of().append_column("more", pa.array(["x"] * 3)))
        assert len(project.columns(view_of())) == 4
