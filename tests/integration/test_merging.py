"""Pushes and runs keep their tables in shape, and nobody who reads them sees it."""

from __future__ import annotations

import logging
import random
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.forked_fs import forked_fs
from support.materialized import (
    DAY,
    INSTANT,
    ExpectedLog,
    Sale,
    day,
    expected_online,
    log_rows,
    online_rows,
    sales_view,
    write_sales,
)
from support.projects import make_workspace

from featurestore import ParquetSource, PushSource
from featurestore.engine.duck.log import DuckLog
from featurestore.errors import DiskFullError, OnlineStoreUnavailableError
from featurestore.ingest import push
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.materialization import materialize, materialize_incremental, succeeded
from featurestore.offline import groups, merge
from featurestore.offline.interface import TableVersion
from featurestore.offline.local import archive
from featurestore.offline.local import store as delta
from featurestore.offline.local.store import DeltaStore
from featurestore.online.records.marker import MarkerReader
from featurestore.training import TrainingSetWarning, get_historical_features
from featurestore.training.reference import ReferenceRow, reference_answer
from featurestore.types.times import MIN_INSTANT
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = day(20)
SALES = [Sale(f"shop {number}", day(number), day(number), number) for number in range(10)]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few commits do what many do, and at once."""
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(merge, "MOST_SMALL", 3)
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 3)
    monkeypatch.setattr(archive, "SETTLED_SECONDS", 0.0)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    write_sales(tmp_path / "sales.parquet", SALES)
    with closing(make_workspace(tmp_path, [sales_view(pushed=True)], now_us=NOW)) as workspace:
        yield workspace


def current(workspace: Workspace) -> TableVersion:
    version = workspace.offline.current(workspace.snapshot().views["shop_sales"].table)
    assert version is not None
    return version


def push_sales(workspace: Workspace, *sales: Sale, to: Any = "offline") -> None:
    """Push rows, and wait until nothing is merged any more."""
    rows = {
        "shop": pa.array([sale.shop for sale in sales]),
        "sold_at": pa.array([sale.sold_us for sale in sales], pa.int64()).cast(INSTANT),
        "known_at": pa.array([sale.known_us for sale in sales], pa.int64()).cast(INSTANT),
        "amount": pa.array([sale.amount for sale in sales], pa.int64()),
        "note": pa.array([sale.note for sale in sales], pa.string()),
    }
    push(workspace, "sales_push", rows, to)
    for thread in threading.enumerate():
        if thread.name.startswith("commit "):
            thread.join()


def push_many(workspace: Workspace, count: int) -> None:
    for number in range(count):
        push_sales(workspace, Sale(f"new {number}", day(11), day(11), number))


def test_pushes_merge_their_files(workspace):
    most = 0
    for number in range(20):
        push_sales(workspace, Sale(f"new {number}", day(11), day(11), number))
        most = max(most, len(current(workspace).files))
    assert most == 3
    assert [row[3] for row in log_rows(workspace)] == list(range(20))
    succeeded(materialize_incremental(workspace))
    assert len(online_rows(workspace)) == 30
    assert not list(workspace.offline.staging(current(workspace).table).iterdir())


def test_a_run_merges_and_the_next_publishes_nothing_for_it(workspace):
    for end in range(1, 11):
        succeeded(materialize_incremental(workspace, day(end)))
    version = current(workspace)
    assert len(version.files) <= 3
    assert version.number > 10
    (run,) = materialize_incremental(workspace, day(10))
    assert (run.appended, run.published.written, run.published.stale) == (0, 0, 0)
    mark = read_watermark(workspace.ledger, workspace.snapshot().views["shop_sales"])
    assert mark.published_version == mark.table_version == current(workspace).number
    assert len(online_rows(workspace)) == 10


def test_publishing_sends_the_new_rows_of_merged_files_alone(workspace):
    succeeded(materialize_incremental(workspace))
    push_many(workspace, 7)  # merged with what is online
    assert len(current(workspace).files) <= 3
    (run,) = materialize_incremental(workspace)
    assert (run.published.written, run.published.stale) == (7, 0)
    optimize(workspace)
    (run,) = materialize_incremental(workspace)
    assert (run.published.written, run.published.stale) == (0, 0)
    push_sales(workspace, Sale("shop 3", day(3), day(3), 99))  # of equal times the last to arrive counts
    optimize(workspace)
    (run,) = materialize_incremental(workspace)
    assert (run.published.written, run.published.stale) == (1, 0)
    assert online_rows(workspace)["shop 3"][2] == 99


@pytest.mark.parametrize("clean", [optimize, collect_garbage])
def test_cleaning_leaves_what_publishing_goes_on_from(workspace, clean, monkeypatch):
    succeeded(materialize_incremental(workspace))
    table = current(workspace).table
    published = workspace.offline.find_commit(table)
    push_many(workspace, 20)
    unneeded = workspace.offline.find_commit(table, 10)
    clean(workspace)
    assert workspace.offline.find_commit(table, published.number) == published
    assert workspace.offline.find_commit(table, unneeded.number) is None
    (run,) = materialize_incremental(workspace)
    assert (run.state, run.published.written, run.published.stale) == ("done", 20, 0)
    # While the online store cannot say which version it is at, nothing of the log goes.
    push_many(workspace, 20)
    kept = workspace.offline.find_commit(table, published.number + 30)
    with monkeypatch.context() as patch:
        patch.setattr(MarkerReader, "read", unavailable)
        clean(workspace)
    assert workspace.offline.find_commit(table, kept.number) == kept


def unavailable(markers: MarkerReader, *, at_once: bool = False) -> Any:
    raise OnlineStoreUnavailableError("It is away.")


def test_what_a_rebuild_withdraws_is_withdrawn_online_through_merges(workspace):
    succeeded(materialize_incremental(workspace))
    push_many(workspace, 7)
    write_sales(workspace.root / "sales.parquet", SALES[:5])
    (run,) = materialize(workspace, day(0), day(11), rebuild=True, confirm=lambda view, rows: rows == 5)
    assert (run.state, run.withdrawn) == ("done", 5)
    push_many(workspace, 7)
    succeeded(materialize_incremental(workspace))
    assert online_rows(workspace).keys() == {*(f"shop {n}" for n in range(5)), *(f"new {n}" for n in range(7))}


def test_a_merge_while_a_run_reads_its_source_costs_no_second_reading(workspace, monkeypatch):
    succeeded(materialize_incremental(workspace))
    write_sales(workspace.root / "sales.parquet", [*SALES, Sale("late", day(12), day(12), 12)])
    stage, staged = DuckLog.stage, []

    def stage_beside_merges(log: Any, request: Any) -> Any:
        staged.append(stage(log, request))
        push_many(workspace, 5)
        return staged[-1]

    monkeypatch.setattr(DuckLog, "stage", stage_beside_merges)
    (run,) = materialize_incremental(workspace)
    assert (run.state, run.appended) == ("done", 1)
    # By the first reading the pushes had numbers that the run's rows were to have; by the second they leave room.
    assert len(staged) == 2
    assert len(log_rows(workspace)) == 21
    assert online_rows(workspace)["late"] == (day(12), day(12), 12, None)


def test_a_damaged_file_is_named_and_left_out_and_no_push_fails(workspace, caplog):
    push_many(workspace, 2)
    damaged = Path(current(workspace).files[0].path)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING, "featurestore"):
        push_many(workspace, 12)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert str(damaged) in told[0]
    assert "is left out of merges" in told[0]
    files = [file.path for file in current(workspace).files]
    assert str(damaged) in files
    assert len(files) <= 4
    assert not (set(files) & {str(path) for path in damaged.parent.glob("_staging/*/*")})


@pytest.mark.parametrize("error", [DiskFullError("No space was left."), RuntimeError("no error of ours")])
def test_a_merge_that_fails_is_no_error_of_pushes_and_runs(workspace, monkeypatch, caplog, error):
    def fails(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(DeltaStore, "merge", fails)
    push_many(workspace, 5)
    assert [record.levelname for record in caplog.records] == [
        "WARNING" if isinstance(error, DiskFullError) else "ERROR"
    ] * 2
    assert len(current(workspace).files) == 5
    if isinstance(error, DiskFullError):
        assert materialize_incremental(workspace)[0].state == "done"
    monkeypatch.undo()
    monkeypatch.setattr(merge, "MOST_SMALL", 3)
    push_many(workspace, 1)
    assert len(current(workspace).files) == 1


MERGER = """
import os
from functools import partial
from pathlib import Path
from featurestore.errors import ConcurrentCommitError
from featurestore.offline.local import archive, store as delta
from featurestore.offline.local.store import DeltaStore
from featurestore.offline.merge import merge_quietly, write_in_memory
from featurestore.testing.offline_store import TABLE
from featurestore.testing.table_growth import append_several

delta.CHECKPOINT_EVERY, archive.SETTLED_SECONDS = 3, 0.0
store = DeltaStore(Path.cwd())
for _ in range(1000 if "FS_CRASH_AT" in os.environ else 10):
    while True:
        try:
            version = append_several(store, 1, store.current(TABLE))
            break
        except ConcurrentCommitError:
            pass
    if len(version.files) > 2:
        merge_quietly(store, version, version.files, partial(write_in_memory, store, TABLE))
"""


@pytest.mark.parametrize("dies_at", [None, "merge.staged:2", "offline.files_moved:6", "offline.committed:5"])
def test_processes_that_merge_one_table_lose_nothing(tmp_path, dies_at):
    environments = [{}, {}, {} if dies_at is None else {"FS_CRASH_AT": dies_at}]
    ended = forked_fs().run_code(MERGER, tmp_path, environments)
    assert [code for code, _ in ended] == [0, 0, 0 if dies_at is None else 137], ended
    from featurestore.testing.offline_store import TABLE, read_rows

    store = DeltaStore(tmp_path)
    version = store.current(TABLE)
    assert version is not None
    rows = read_rows(store, version)
    assert [row["fs_seq"] for row in rows] == list(range(len(rows)))
    # Which process wins a race for a version is open: the one that dies may not have committed a row by then.
    assert len(rows) == 30 if dies_at is None else len(rows) >= 20
    assert len(version.files) < 12
    assert store.clean(TABLE, keep=[], known=[]) > 0
    assert read_rows(store, version) == rows


def write_several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine do what its contract allows: several files for one, and numbers with gaps."""
    stage, compact = DuckLog.stage, DuckLog.compact

    def parts_of(path: Path, first: int | None = None) -> list[Path]:
        table = pq.ParquetFile(path).read()
        if first is not None:
            spread = pc.add(pc.multiply(pc.subtract(table["fs_seq"], first), 3), first + 2)
            table = table.set_column(table.schema.get_field_index("fs_seq"), "fs_seq", spread)
        path.unlink()
        made = [path.with_name(f"{number}-{path.name}") for number in range(min(2, len(table)))]
        for number, part in enumerate(made):  # by turns: both span the same times, each lies in order
            pq.write_table(table.take(list(range(number, len(table), 2))), part)
        return made

    def stage_several(log: DuckLog, request: Any) -> Any:
        staged = stage(log, request)
        parts = [part for path in staged.paths for part in parts_of(path, request.first_sequence)]
        return replace(staged, paths=tuple(parts))

    def compact_several(log: DuckLog, *arguments: Any) -> tuple[Path, ...]:
        return tuple(part for path in compact(log, *arguments) for part in parts_of(path))

    monkeypatch.setattr(DuckLog, "stage", stage_several)
    monkeypatch.setattr(DuckLog, "compact", compact_several)


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_any_order_of_pushes_runs_and_merges_ends_as_plain_loops_say(tmp_path, monkeypatch, request, seed):
    dice = random.Random(seed)
    if seed > 3:
        write_several_files(monkeypatch)
    read_again = ParquetSource("sales", "sales.parquet", "sold_at", "known_at", allowed_lateness=timedelta(days=365))
    view = sales_view().replaced(sources=(PushSource("sales_push", read_again),))
    online_url = request.getfixturevalue("redis_url") if seed % 2 else None
    sales = random_sales(dice, 20)
    pushed: list[Sale] = []
    expected = ExpectedLog()
    write_sales(tmp_path / "sales.parquet", sales)
    with closing(make_workspace(tmp_path, [view], online_url=online_url, now_us=NOW)) as workspace:
        for _ in range(12):
            monkeypatch.setattr(merge, "MOST_SMALL", dice.randrange(1, 4))
            kind = dice.choice(["push", "push", "push", "incremental", "interval", "rebuild", "optimize", "gc"])
            start, end = sorted(dice.sample(range(20), 2))
            if kind == "push":
                some = [replace(sale, known_us=sale.known_us + 1) for sale in random_sales(dice, dice.randrange(1, 4))]
                push_sales(workspace, *some, to=dice.choice(["both", "offline"]))
                pushed += some
                expected.rows += [(sale.shop, sale.sold_us, sale.known_us, sale.amount, sale.note) for sale in some]
            elif kind == "optimize":
                optimize(workspace)
            elif kind == "gc":
                collect_garbage(workspace)
            else:
                sales += random_sales(dice, 3)
                if kind == "rebuild":
                    sales = [sale for sale in sales if dice.random() > 0.3]
                write_sales(tmp_path / "sales.parquet", sales)
                if kind == "incremental":
                    succeeded(materialize_incremental(workspace))
                    expected.read(sales, MIN_INSTANT, NOW, NOW)
                else:
                    span = day(start), day(end)
                    succeeded(materialize(workspace, *span, rebuild=kind == "rebuild", confirm=lambda view, rows: True))
                    expected.read(sales, *span, NOW)
                    if kind == "rebuild":
                        expected.withdraw([*sales, *pushed], *span)
                assert online_rows(workspace) == expected_online(expected, NOW)
            assert sorted(log_rows(workspace), key=repr) == sorted(expected.rows, key=repr)
            assert training_set(workspace) == plain_loops(log_rows(workspace))


def random_sales(dice: random.Random, count: int) -> list[Sale]:
    """Return sales of few shops and instants, so that ties are common."""
    made = []
    for _ in range(count):
        sold = day(dice.randrange(0, 19))
        made.append(Sale(dice.choice("abc"), sold, dice.choice([sold, sold + DAY]), dice.randrange(100)))
    return made


FRAME = [(shop, day(at) + shift) for shop in "abcd" for at in range(0, 20, 3) for shift in (0, DAY // 2)]


def training_set(workspace: Workspace) -> list[int | None]:
    shops, times = zip(*FRAME, strict=True)
    frame = pa.table({"shop": shops, "event_timestamp": pa.array(times).cast(INSTANT)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingSetWarning)  # not all of it was materialized
        found: list[int | None] = (
            get_historical_features(workspace, frame, ["shop_sales:amount"]).to_arrow()["amount"].to_pylist()
        )
    return found


def plain_loops(log: Sequence[tuple[Any, ...]]) -> list[int | None]:
    rows = [
        ReferenceRow((shop,), event, created, number, {"amount": amount})
        for number, (shop, event, created, amount, _) in enumerate(log)
    ]
    answers = [reference_answer((shop,), at, rows, ttl_us=None, as_of="available") for shop, at in FRAME]
    return [answer.values["amount"] if isinstance(answer, ReferenceRow) else None for answer in answers]
