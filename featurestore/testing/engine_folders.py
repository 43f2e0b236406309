"""How every engine must read folders called ``name=value``: below a source they are partitions, elsewhere nothing.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import SourceError, SourceSchemaError
from featurestore.testing.engine_project import (
    EngineProject,
    EngineSuite,
    damage,
    instants,
    source_at,
    table_of,
    view_of,
)
from featurestore.types import Date, Float64, Int64, String

SQL = 'SELECT k, "at", v FROM flights'

PATHS = [
    "data",
    "data/*.parquet",
    "data/f.parquet",
    "d*a/*.parquet",
    "**/f.parquet",
    "{root}/data",
    "{root}/*/*.parquet",
]


ODD = ['~it\'s 100% "odd" #1 ? * {a,b} ü☃é', "-x=y;$&!@()+,`<>: %zz %4", "key=value"]
ODD += ["%20", "my%2Fproject", "%41", "%25", "a\\b", "[a]", "a]", "a^b", "a|b", "a\nb", "a\tb", "\x7f"]


class EngineFoldersConformance(EngineSuite):
    """The suite."""

    @pytest.mark.parametrize("name", ODD)
    def test_sources_in_odd_folders_are_read(self, project: EngineProject, name: str) -> None:
        project.write(f"{name}/f.parquet", table_of())
        project.write(f"g/{name}/f.parquet", table_of())
        outside, inside = project.root, project.root / name
        below = [name, f"{name}/f.parquet", "g/*/f.parquet", str(inside), str(outside / "g" / "*" / "*.parquet")]
        within = ["f.parquet", "*.parquet", ".", str(inside / "*.parquet"), str(inside / "f.parquet")]
        for place, paths in ((project, below), (project.at(name), within)):
            for path in paths:
                assert len(place.files(path)) == 1
                assert list(place.value_types(view_of(path)))[:3] == ["k", "at", "v"]
                assert place.first_event_us(view_of(path)) == 0

    @pytest.mark.parametrize("sql", [None, SQL], ids=["columns", "sql"])
    @pytest.mark.parametrize("path", PATHS)
    def test_a_folder_above_a_source_is_no_partition(self, project: EngineProject, path: str, sql: str | None) -> None:
        below = project.at("k=9/v=9.5/at=2020-02-02/other=1")
        below.write("data/f.parquet", table_of())
        view = view_of(path.format(root=below.root), sql=sql)
        assert list(below.value_types(view)) == ["k", "at", "v"]
        assert below.first_event_us(view) == 0
        found = [(row["k"], row["event_ts"].timestamp(), row["v"]) for row in below.rows(view)]
        assert found == [(0, 0.0, 1.5), (1, 0.000001, 1.5), (2, 0.000002, 1.5)]

    @pytest.mark.parametrize("path", ["k=9/v=8", "k=9/v=8/f.parquet", "k=9/v=8/*.parquet", "k=9/v=8/**/*.parquet"])
    def test_a_folder_that_the_source_names_is_no_partition(self, project: EngineProject, path: str) -> None:
        project.write("k=9/v=8/f.parquet", table_of())
        assert [row["k"] for row in project.rows(view_of(path))] == [0, 1, 2]
        project.write("k=9/v=8/f.parquet", table_of().drop_columns(["k"]))
        with pytest.raises(SourceSchemaError, match="join key 'k' is missing"):
            project.rows(view_of(path))

    @pytest.mark.parametrize(
        "path", ["data", "data/*/*.parquet", "data/**/f.parquet", "data/v=[xy]/f.parquet", "d*/*/*"]
    )
    def test_a_folder_below_the_fixed_part_of_a_path_is_a_partition(self, project: EngineProject, path: str) -> None:
        below = project.at("v=above")
        for name in ("x", "y"):
            below.write(f"data/v={name}/f.parquet", pa.table({"k": [ord(name)], "at": instants(1)}))
        for sql in (None, f"{SQL} WHERE v <> 'z'"):
            rows = below.rows(view_of(path, features={"v": String}, sql=sql))
            assert {row["k"]: row["v"] for row in rows} == {120: "x", 121: "y"}

    def test_files_of_one_source_may_lie_at_different_depths(self, project: EngineProject) -> None:
        plain = pa.table({"k": [1], "at": instants(1)})
        for number, folder in enumerate(["", "v=1", "v=2", "deep/er/v=3", "v=4/deep", "w=1/v=5", "v=6/w=1", "=x/v=7"]):
            project.write(f"data/{folder}/f.parquet", plain.set_column(0, "k", pa.array([number])))
        view = view_of("data", features={"v": String, "w": String})
        found = {row["k"]: (row["v"], row["w"]) for row in project.rows(view)}
        assert found == {
            0: (None, None), 1: ("1", None), 2: ("2", None), 3: ("3", None), 4: ("4", None), 5: ("5", "1"),
            6: ("6", "1"), 7: ("7", None),
        }  # fmt: skip

    @pytest.mark.parametrize("sql", [None, SQL], ids=["columns", "sql"])
    @pytest.mark.parametrize(
        ("folder", "values", "wanted"),
        [
            ("v=x", ["x", "x"], "x"),
            ("v=01", pa.array([1, 1], pa.int16()), "01"),
            ("v=2020-01-02", [date(2020, 1, 2)] * 2, "2020-01-02"),
            ("v=a%2Fb", ["a/b", "a/b"], "a/b"),
            ("v=__HIVE_DEFAULT_PARTITION__", pa.array([None, None], pa.string()), None),
            ("v=0.1", pa.array([0.1, 0.1], pa.float32()), "0.1"),
            ("v=x", pa.nulls(2), "x"),
            ("v=01.50", pa.array([Decimal("1.50")] * 2), "01.50"),
            ("v=-1", pa.array([-1.0, -1.0]), "-1"),
            ("v=0", pa.array([0.0, 0.0]), "0"),
            ("v=true", [True, True], "true"),
            ("v=2020-01-02 00:00:00", [date(2020, 1, 2)] * 2, "2020-01-02 00:00:00"),
            ("v=2020-01-02", pa.array([date(2020, 1, 2)] * 2).cast(pa.timestamp("us")), "2020-01-02"),
            ("v=x", ["x", "y"], SourceError),
            ("v=x", ["x", None], SourceError),
            ("v=1", [1, 2], SourceError),
            ("v=x", [1, 1], SourceError),
            ("v=x", pa.array([None, None], pa.int64()), SourceError),
            ("v=1.6", [2, 2], SourceError),
            ("v=1.239", pa.array([Decimal("1.24")] * 2), SourceError),
            ("v=16777217", pa.array([2.0**24] * 2, pa.float32()), SourceError),
            ("v=yes", [True, True], SourceError),
            ("v=X", ["x", "x"], SourceError),
            ("v=2020-01-02 15:00:00", [date(2020, 1, 2)] * 2, SourceError),
            ("v=__HIVE_DEFAULT_PARTITION__", [1, 1], SourceError),
            ("v=__HIVE_DEFAULT_PARTITION__", ["x", "x"], SourceError),
        ],
    )
    def test_a_folder_and_a_column_of_the_file_must_agree(
        self, project: EngineProject, folder: str, values: Any, wanted: Any, sql: str | None
    ) -> None:
        project.write(f"data/{folder}/f.parquet", table_of(v=pa.array(values)))
        project.write("data/v=other/g.parquet", pa.table({"k": [7], "at": instants(1)}))
        view = view_of("data", features={"v": String}, sql=sql)
        if wanted is SourceError:
            with pytest.raises(
                SourceError, match=r"Column 'v' of .*f\.parquet holds .*, but its folder says "
            ) as caught:
                project.rows(view)
            assert folder in caught.value.message
            assert caught.value.hint == "Rename the folder, or correct the column of the file."
            return
        found = {row["k"]: row["v"] for row in project.rows(view)}
        assert found == {0: wanted, 1: wanted, 7: "other"}

    def test_two_folders_that_spell_one_number_are_refused(self, project: EngineProject) -> None:
        for number, folder in enumerate(("v=1", "v=01")):
            project.write(f"data/{folder}/f.parquet", table_of(k=pa.array([number] * 3), v=pa.array([1, 1, 1])))
        with pytest.raises(SourceSchemaError, match="column 'v' is 1 in one folder's name, but 01 in another's"):
            project.rows(view_of("data", features={"v": String}))

    def test_a_contradiction_in_a_column_that_no_view_reads_harms_nobody(self, project: EngineProject) -> None:
        project.write("data/note=x/f.parquet", table_of().append_column("note", pa.array(["y"] * 3)))
        assert [row["v"] for row in project.rows(view_of("data"))] == [1.5] * 3
        assert [row["v"] for row in project.rows(view_of("data", sql=SQL))] == [1.5] * 3

    def test_a_partition_is_a_key_and_no_time(self, project: EngineProject) -> None:
        for number, name in enumerate(["2020-01-01", "2020-01-02"]):
            project.write(f"data/k={name}/f.parquet", pa.table({"at": instants(number), "v": [1.5]}))
        found = [row["k"] for row in project.rows(view_of("data", keys={"k": String}))]
        assert found == ["2020-01-01", "2020-01-02"]
        view = view_of("data", keys={"k": Date}, sql='SELECT k::DATE AS k, "at", v FROM flights')
        assert [row["k"] for row in project.rows(view)] == [date(2020, 1, 1), date(2020, 1, 2)]
        with pytest.raises(SourceSchemaError, match="join key 'k' is declared Int64, found hive partition"):
            project.rows(view_of("data"))

    def test_odd_names_of_partitions_are_read_as_they_are_meant(self, project: EngineProject) -> None:
        names = {"a%20b": "a b", "ü": "ü", "q'uote": "q'uote", "a[b": "a[b", "fs_x": "fs_x", "filename": "filename"}
        for spelled in names:
            project.write(f"data/{spelled}={spelled}/f.parquet", table_of(k=pa.array([len(spelled)])))
        assert set(project.value_types(source_at("data"))) == {"k", "at", "v", *names.values()}
        quoted = ", ".join(f'"{name}"' for name in names.values())
        sql = f"SELECT k, \"at\", concat_ws(',', {quoted}) AS v FROM flights"
        rows = project.rows(view_of("data", features={"v": String}, sql=sql))
        assert {row["v"] for row in rows} <= set(names.values())

    def test_a_files_own_column_may_be_called_like_what_the_engine_calls_files(self, project: EngineProject) -> None:
        table = table_of().append_column("filename", pa.array(["mine"] * 3))
        project.write("data/day=1/f.parquet", table)
        view = view_of("data", features={"filename": String, "day": String, "v": Float64})
        assert {(row["filename"], row["day"]) for row in project.rows(view)} == {("mine", "1")}

    def test_only_the_folders_that_sql_asks_for_are_read(self, project: EngineProject) -> None:
        for number in range(4):
            project.write(f"data/day={number}/f.parquet", table_of(k=pa.array([number])))
        damage(project.root / "data/day=2/f.parquet", 4, 40)  # had the file been read, the error would show
        view = view_of("data", keys={"k": Int64}, sql=f"{SQL} WHERE day < '2'")
        assert [row["k"] for row in project.rows(view)] == [0, 1]
