"""What every engine must do with a log's rows: stage new ones, find the newest, withdraw some, write them again.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal as PythonDecimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from featurestore.engine.interface import GONE_CREATED, GONE_EVENT, Span, StagedRows
from featurestore.errors import DamagedFileError
from featurestore.testing.engine_project import (
    ALWAYS,
    EngineProject,
    EngineSuite,
    damage,
    in_microseconds,
    instants,
    is_in_order,
    log_view,
    paths_of,
    read_file,
    read_log,
    table_of,
    view_of,
    write_log,
)
from featurestore.training.reference import ReferenceRow
from featurestore.types import Array, Bytes, Decimal, Float32, Float64, Int32, Int64, String
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

MORE = pa.list_(pa.decimal128(10, 2))


def log_table(start: int, **features: pa.Array) -> pa.Table:
    """Return two rows of a log: key, event time and sequence count on."""
    return pa.table(
        {
            "k": pa.array([start + 1, start + 2]),
            EVENT: instants(start + 1, start + 2),
            CREATED: instants(None, None),
            SEQUENCE: pa.array([start, start + 1]),
            ORIGIN: ["batch"] * 2,
            **features,
        }
    )


KEPT = log_view("kept", {"k": Int64}, {"v": Int64, "late": Array(Int64)})


def random_log(project: EngineProject) -> tuple[list[Path], list[ReferenceRow]]:
    """Write files as several writers leave them, numbered by tens, and return them with all their rows."""
    dice = Random(3)
    files, rows = [], []
    for number in range(9):
        own = []
        for place in range(dice.randrange(1, 6)):
            event_us = dice.randrange(5)
            created_us = dice.choice([None, event_us, event_us + 1])
            values = {"v": dice.choice([None, number]), "late": [None, number] if number % 2 else None}
            own.append(ReferenceRow((dice.randrange(3),), event_us, created_us, 10 * number + place, values))
        path = project.root / f"log/{number}.parquet"
        laid = sorted(own, key=lambda row: (row.event_us, row.created_or_event_us, row.sequence))
        origin, without = ("push", ()) if number % 2 else ("batch", ("late",))
        files.append(write_log(path, KEPT, laid, without=without, origin=origin))
        rows += own
    return files, rows


def newest(rows: Iterable[ReferenceRow]) -> dict[tuple[Any, ...], ReferenceRow]:
    """Return the newest row of each entity."""
    found: dict[tuple[Any, ...], ReferenceRow] = {}
    for row in sorted(rows, key=lambda row: (row.event_us, row.created_or_event_us, row.sequence)):
        found[row.keys] = row
    return found


def assert_numbered(sequences: Sequence[int], first: int) -> None:
    """Check that numbers are unique, count up, and begin where they may."""
    assert list(sequences) == sorted(set(sequences))
    assert not sequences or sequences[0] >= first


class EngineLogConformance(EngineSuite):
    """The suite."""

    def test_a_large_result_lies_in_order_and_is_numbered_as_it_arrived(self, project: EngineProject) -> None:
        """`EngineProject.stage` looks at the order; engines that find the newest row by its place rest on it."""
        rows = 300_000
        table = pa.table(
            {
                "k": pa.array(range(rows)),
                "at": instants(*((n * 7_919) % 1_000 for n in range(rows))),
                "known": instants(*((n * 104_729) % 2_000 if n % 3 else None for n in range(rows))),
                "v": pa.array([float(n) for n in range(rows)]),
            }
        )
        project.write("data.parquet", table)
        staged = project.stage(view_of(created="known"), first_sequence=10**12)
        assert staged.appended == rows
        written = read_log(paths_of(staged))
        assert written["k"].to_pylist() == list(range(rows))
        assert_numbered(written[SEQUENCE].to_pylist(), 10**12)

    def test_what_the_log_holds_in_another_generation_of_features(self, project: EngineProject) -> None:
        """A feature that was added later is null in older files: rows with a value for it are new versions."""
        project.write("data.parquet", table_of(more=pa.array(["x", None, "y"])))
        old = project.stage(view_of())
        view = view_of(features={"v": Float64, "more": String})
        new = project.stage(view, log=paths_of(old))
        assert (new.appended, new.unchanged) == (2, 1)
        wider = view_of(features={"v": Float64})
        narrow = read_log(paths_of(old))
        narrow = narrow.set_column(narrow.schema.names.index("v"), "v", narrow["v"].cast(pa.float32()))
        path = project.write("staging/narrow.parquet", narrow)
        assert project.stage(wider, log=[path]).unchanged == 3

    def test_a_correction_and_its_correction_back(self, project: EngineProject) -> None:
        """A, B, A: the newest version counts, so the third is a row of its own."""
        log: list[Path] = []
        for number, value in enumerate([1.5, 2.5, 1.5, 1.5]):
            project.write("data.parquet", table_of(k=pa.array([1]), v=pa.array([value])))
            staged = project.stage(view_of(), log=log, first_sequence=number)
            log += paths_of(staged)
        assert [read_file(path)["v"].to_pylist() for path in log] == [[1.5], [2.5], [1.5]]

    @pytest.mark.parametrize(
        ("kind", "first", "second"),
        [
            (Float64, 0.0, -0.0),
            (Float32, -0.0, 0.0),
            (Float64, math.nan, None),
            (Float64, math.inf, -math.inf),
            (Array(Float64), [0.0], [-0.0]),
            (Array(Array(Float32)), [[1.0], [-0.0, None]], [[1.0], [0.0, None]]),
            (Array(Float64), [math.nan], [None]),
            (Array(Int64), [], None),
            (Array(Int64), [None], []),
            (String, "", None),
            (String, "e\u0301", "é"),
            (Bytes, b"", None),
            (Decimal(5, 2), PythonDecimal("0.01"), PythonDecimal("0.00")),
        ],
        ids=str,
    )
    def test_values_that_differ_a_little_are_corrections_and_equal_ones_are_not(
        self, project: EngineProject, kind: Any, first: Any, second: Any
    ) -> None:
        view = view_of(features={"v": kind})

        def staged_as(value: Any, log: list[Path]) -> StagedRows:
            project.write("data.parquet", table_of(k=pa.array([1]), v=pa.array([value], arrow_type(kind))))
            return project.stage(view, log=log)

        one = staged_as(first, [])
        assert staged_as(first, paths_of(one)).unchanged == 1
        other = staged_as(second, paths_of(one))
        assert other.appended == 1
        assert staged_as(second, paths_of(other)).unchanged == 1

    def test_a_row_is_its_keys_its_event_time_and_the_time_it_became_known(self, project: EngineProject) -> None:
        """A null created time counts as the event time: the first two are versions of one row, the third another."""
        one = pa.array([1, 1, 1])
        project.write("data.parquet", table_of(k=one, at=instants(3, 3, 3), known=instants(None, 3, 4)))
        staged = project.stage(view_of(created="known"))
        assert (staged.appended, staged.duplicates) == (2, 1)
        assert project.stage(view_of(created="known"), log=paths_of(staged)).unchanged == 2

    def test_rows_dated_after_now_wait(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of(at=instants(1, 5, 1), known=instants(1, 5, 9)))
        staged = project.stage(view_of(created="known"), now_us=4)
        assert (staged.read, staged.appended, staged.waiting, staged.max_created_us) == (3, 1, 2, 1)
        later = project.stage(view_of(created="known"), now_us=9, log=paths_of(staged))
        assert (later.appended, later.unchanged, later.waiting, later.max_created_us) == (2, 1, 0, 9)

    def test_spans_choose_by_rounded_event_by_created_and_by_file(self, project: EngineProject) -> None:
        project.write("data/a.parquet", table_of(k=pa.array([1, 2]), at=instants(999, 1_001, unit="ns", zone=None)))
        project.write("data/b.parquet", table_of(k=pa.array([3]), at=instants(3_000, unit="ns", zone=None)))
        view = view_of("data")

        def keys(*spans: Span) -> list[int]:
            return [row["k"] for row in project.rows(view, spans=spans)]

        assert keys(Span(0, 1)) == []
        assert keys(Span(1, 2)) == [1]
        assert keys(Span(2, 4)) == [2, 3]
        assert keys(Span(1, 2), Span(1, 4)) == [1, 2, 3]
        assert keys() == []
        assert keys(Span(0, 9, files=("data/b.parquet",))) == [3]
        assert keys(Span(0, 9, files=())) == []
        assert keys(Span(0, 9, files=("data/gone.parquet",))) == []
        assert keys(Span(0, 9, created_after_us=1)) == [2, 3]
        assert keys(Span(0, 9, created_after_us=3), Span(1, 2, files=("data/a.parquet",))) == [1]

    def test_sequence_numbers_follow_files_and_rows(self, project: EngineProject) -> None:
        for number, name in enumerate(["b.parquet", "a/z.parquet", "c.parquet"]):
            project.write(f"data/{name}", table_of(k=pa.array([number, number + 10]), at=instants(5, 5)))
        rows = project.rows(view_of("data"), first_sequence=100)
        assert [row["k"] for row in rows] == [1, 11, 0, 10, 2, 12]
        assert_numbered([row[SEQUENCE] for row in rows], 100)
        only = [Span(ALWAYS.start_us, ALWAYS.end_us, files=("data/b.parquet",))]
        rows = project.rows(view_of("data"), first_sequence=100, spans=only)
        assert [row["k"] for row in rows] == [0, 10]
        assert_numbered([row[SEQUENCE] for row in rows], 100)

    @pytest.mark.parametrize("sql", [None, 'SELECT k, "at", v FROM flights'])
    def test_of_equal_keys_and_times_the_last_counts(self, project: EngineProject, sql: str | None) -> None:
        for number in range(3):
            keys, values = pa.array([1, 2, 1]), pa.array([float(10 * number + place) for place in range(3)])
            project.write(f"data/{number}.parquet", table_of(k=keys, at=instants(5, 5, 5), v=values))
        staged = project.stage(view_of("data", sql=sql))
        assert (staged.read, staged.duplicates, staged.appended) == (9, 7, 2)
        assert {row["k"]: row["v"] for row in read_log(paths_of(staged)).to_pylist()} == {1: 22.0, 2: 21.0}

    def test_later_rows_are_counted_though_no_span_holds_them(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of(at=instants(1, 5, 9)))
        for counts_later, read, waiting in ((False, 1, 0), (True, 3, 2)):
            staged = project.stage(view_of(), now_us=4, spans=[Span(0, 5)], counts_later=counts_later)
            assert (staged.read, staged.waiting, staged.appended) == (read, waiting, 1)
            assert (staged.min_event_us, staged.max_created_us) == (1, None)

    def test_a_damaged_file_of_the_log_is_told(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of(k=pa.array(range(10_000))))
        staged = project.stage(view_of())
        for path in paths_of(staged):
            damage(path, 4, 2_000)
        with pytest.raises(DamagedFileError, match="of the offline store cannot be read"):
            project.stage(view_of(), log=paths_of(staged))
        with pytest.raises(DamagedFileError):
            project.latest(view_of(), paths_of(staged))
        for path in paths_of(staged):
            path.unlink()
        with pytest.raises(DamagedFileError, match="No such file"):
            project.latest(view_of(), paths_of(staged))

    def test_latest_of_no_files_is_nothing(self, project: EngineProject) -> None:
        assert project.latest(view_of(), []).num_rows == 0

    def test_the_newest_row_of_each_entity(self, project: EngineProject) -> None:
        files, rows = random_log(project)
        for until_us in (None, 3, -1):
            for first_sequence in (0, 20):
                for chosen in (None, files[3:6]):
                    found = project.latest(
                        KEPT, files, changed=chosen, until_us=until_us, first_sequence=first_sequence, batch_rows=2
                    ).to_pylist()
                    counted = [
                        row
                        for row in rows
                        if (until_us is None or max(row.event_us, row.created_or_event_us) <= until_us)
                        and row.sequence >= first_sequence
                        and (chosen is None or 30 <= row.sequence < 60)
                    ]
                    expected = newest(counted)
                    assert {row["k"]: row["v"] for row in found} == {
                        key: row.values["v"] for (key,), row in expected.items()
                    }
                    assert len(found) == len(expected)

    def test_entities_are_counted(self, project: EngineProject) -> None:
        files, rows = random_log(project)
        for since_us, until_us in ((0, 10), (2, 3), (4, 4), (9, 10)):
            within = {
                row.keys for row in rows if since_us <= row.event_us <= until_us and row.created_or_event_us <= until_us
            }
            assert project.entities(KEPT, files, since_us, until_us) == (len({row.keys for row in rows}), len(within))
            assert project.entities(KEPT, [], since_us, until_us) == (0, 0)

    def test_what_the_source_no_longer_holds_is_withdrawn_and_replaced(self, project: EngineProject) -> None:
        files, rows = random_log(project)
        held = [row for row in rows if row.sequence % 3]
        kept = {(row.keys, row.event_us, row.created_or_event_us) for row in held}
        project.write(
            "data.parquet",
            pa.table(
                {
                    "k": [row.keys[0] for row in held],
                    "at": instants(*(row.event_us for row in held)),
                    "known": instants(*(row.created_us for row in held)),
                    "v": [row.values["v"] for row in held],
                }
            ),
        )
        # The log's pushed rows, in every other file, are no rows of the source, whatever that holds.
        gone = [
            row
            for row in rows
            if row.sequence // 10 % 2 == 0
            and 1 <= row.event_us < 4
            and (row.keys, row.event_us, row.created_or_event_us) not in kept
        ]
        assert gone
        view, span = view_of(created="known", features={"v": Int64}), Span(1, 4)
        dry = project.withdraw(view, files, span, dry=True)
        assert (dry.rows, dry.written) == (len(gone), ())
        done = project.withdraw(view, files, span)
        assert (done.rows, done.removed) == (dry.rows, dry.removed)
        now = [*(file for file in files if str(file) not in done.removed), *done.written]
        left = [row for row in rows if row not in gone]
        assert read_log(now)[SEQUENCE].to_pylist() == sorted(row.sequence for row in left)
        assert all(is_in_order(read_file(path)) for path in done.written)
        found = project.replacements(KEPT, now, removed=done.removed, added=done.written)
        shown = [
            (row["k"], row[GONE_EVENT], row[GONE_CREATED], row[EVENT], row[CREATED], row["v"])
            for row in in_microseconds(found).to_pylist()
        ]
        expected = set()
        for row in gone:
            best = newest(left).get(row.keys)
            instead = (None, None, None) if best is None else (best.event_us, best.created_us, best.values["v"])
            expected.add((row.keys[0], row.event_us, row.created_or_event_us, *instead))
        assert (set(shown), len(shown)) == (expected, len(expected))

    @pytest.mark.parametrize("how", ["compact", "withdraw"])
    def test_a_feature_that_the_view_does_not_know_is_kept(self, project: EngineProject, how: str) -> None:
        v = pa.array([1, 2], pa.int32())
        files = [
            project.write("log/1.parquet", log_table(0, v=v)),
            project.write(
                "log/2.parquet", log_table(2, v=v, more=pa.array([[PythonDecimal("1.50"), None], None], MORE))
            ),
        ]
        # The source no longer holds the fourth row.
        source = table_of(
            k=pa.array([1, 2, 3]), at=instants(1, 2, 3), v=pa.array([1, 2, 3]), new=pa.nulls(3, pa.string())
        )
        project.write("data.parquet", source)
        view = view_of(features={"v": Int64, "new": String})
        is_compacted = how == "compact"
        made = project.compact(view, files) if is_compacted else project.withdraw(view, files, ALWAYS).written
        found = read_log(made)
        assert found["v"].type == pa.int64()  # the view's, where that is wider
        assert found["more"].type.value_type == MORE.value_type
        rows = [(row["k"], row[SEQUENCE], row["v"], row["more"]) for row in found.to_pylist()]
        assert rows == ([(1, 0, 1, None), (2, 1, 2, None)] if is_compacted else []) + [
            (3, 2, 1, [PythonDecimal("1.50"), None]),
            *([(4, 3, 2, None)] if is_compacted else []),
        ]

    def test_a_type_that_the_view_knows_narrower_stays_wide(self, project: EngineProject) -> None:
        file = project.write("1.parquet", log_table(0, v=pa.array([2**40, None])))
        made = project.compact(view_of(features={"v": Int32}), [file])
        assert read_log(made)["v"].to_pylist() == [2**40, None]

    def test_compacted_rows_lie_in_the_tables_order_with_every_column(self, project: EngineProject) -> None:
        files, rows = random_log(project)
        made = project.compact(log_view("kept", {"k": Int64}, {"v": Int64, "late": Array(Int64), "new": String}), files)
        assert all(is_in_order(read_file(path)) for path in made)
        table = read_log(made)
        assert table.schema.names[:6] == ["k", EVENT, CREATED, SEQUENCE, ORIGIN, "v"]
        found = [
            ReferenceRow((row["k"],), row[EVENT], row[CREATED], row[SEQUENCE], {"v": row["v"], "late": row["late"]})
            for row in in_microseconds(table).to_pylist()
        ]
        assert found == sorted(rows, key=lambda row: row.sequence)
        assert table[ORIGIN].to_pylist() == ["push" if row.sequence // 10 % 2 else "batch" for row in found]
