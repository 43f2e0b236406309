"""Pushed rows: into the offline log and online, beside everything else that happens to a view."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import DAY, INSTANT, Sale, day, log_rows, online_rows, sales_view, write_sales
from support.projects import apply_records, make_workspace
from support.serving import until

from featurestore import FeatureView, Field
from featurestore.consistency import moments
from featurestore.errors import (
    ConcurrentCommitError,
    DiskFullError,
    EntityKeyError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    OnlineStoreUnavailableError,
    ValueTypeError,
)
from featurestore.ingest import push
from featurestore.ingest.group_commit import Pushed, commit_rows
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.optimize import optimize
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.offline import groups
from featurestore.offline.local.store import DeltaStore
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.keys import view_prefix
from featurestore.training import get_historical_features
from featurestore.training.coverage import TrainingSetWarning
from featurestore.types import Int64, String
from featurestore.workspace import Workspace

NOW = day(20)
SALES = [Sale(f"shop {number % 4}", day(number), day(number), number) for number in range(10)]


@pytest.fixture(params=["lmdb", "redis"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests that push one row after the other not wait for a second each."""
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.02)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with closing(made(tmp_path)) as workspace:
        yield workspace


def made(tmp_path: Path, online_url: Any = None, **options: Any) -> Workspace:
    write_sales(tmp_path / "sales.parquet", SALES)
    return make_workspace(tmp_path, [sales_view(pushed=True, **options)], online_url=online_url, now_us=NOW)


def rows_of(*sales: Sale) -> dict[str, pa.Array]:
    return {
        "shop": pa.array([sale.shop for sale in sales]),
        "sold_at": pa.array([sale.sold_us for sale in sales], pa.int64()).cast(INSTANT),
        "known_at": pa.array([sale.known_us for sale in sales], pa.int64()).cast(INSTANT),
        "amount": pa.array([sale.amount for sale in sales], pa.int64()),
        "note": pa.array([sale.note for sale in sales], pa.string()),
    }


def training(workspace: Workspace, times: list[int], shop: str = "shop 1", **options: Any) -> list[int | None]:
    frame = pa.table({"shop": [shop] * len(times), "event_timestamp": pa.array(times).cast(INSTANT)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingSetWarning)  # what is pushed may lie past what runs have read
        made = get_historical_features(workspace, frame, ["shop_sales:amount"], **options)
    amounts: list[int | None] = made.to_arrow()["amount"].to_pylist()
    return amounts


def counts(result: Any, view: str = "shop_sales") -> tuple[int, int, int, int]:
    found = result.views[view].online
    return found.written, found.stale, found.expired, found.wrong_type


def watermark(workspace: Workspace) -> Any:
    return read_watermark(workspace.ledger, workspace.snapshot().views["shop_sales"])


def newest(workspace: Workspace) -> dict[str, tuple[Any, ...]]:
    """Return each shop's newest row of the log, of equal times the last to arrive, as `online_rows` has it."""
    best: dict[str, tuple[Any, ...]] = {}
    for shop, event_us, created_us, *values in log_rows(workspace):
        row = (event_us, event_us if created_us is None else created_us, *values)
        if shop not in best or row[:2] >= best[shop][:2]:
            best[shop] = row
    return best


class TestWhereRowsGo:
    def test_both(self, tmp_path, online_url):
        with closing(made(tmp_path, online_url)) as workspace:
            succeeded(materialize_incremental(workspace))
            result = push(workspace, "sales_push", rows_of(Sale("shop 1", day(19), None, 100, "pushed")))
            assert result.to_dict() == {
                "source": "sales_push",
                "rows": 1,
                "to": "both",
                "views": {
                    "shop_sales": {
                        "online": {"written": 1, "stale": 0, "expired": 0, "wrong_type": 0},
                        "offline": {"rows": 1, "version": 1},
                    }
                },
                "note": None,
            }
            assert log_rows(workspace)[-1] == ("shop 1", day(19), NOW, 100, "pushed")
            assert online_rows(workspace)["shop 1"] == (day(19), NOW, 100, "pushed")
            assert online_rows(workspace) == newest(workspace)

    def test_online_alone_says_what_it_is_not(self, workspace):
        succeeded(materialize_incremental(workspace))
        result = push(workspace, "sales_push", rows_of(Sale("shop 1", day(19), None, 100)), to="online")
        assert result.views["shop_sales"].offline is None
        assert "in no training set" in result.note
        assert len(log_rows(workspace)) == len(SALES)
        assert training(workspace, [NOW]) == [9]
        assert online_rows(workspace)["shop 1"] == (day(19), NOW, 100, None)
        succeeded(republish(workspace, authoritative=True))
        assert online_rows(workspace) == newest(workspace)

    def test_offline_alone_is_published_by_the_next_run(self, workspace):
        result = push(workspace, "sales_push", rows_of(Sale("shop 1", day(19), None, 100)), to="offline")
        assert result.views["shop_sales"].online is None
        assert online_rows(workspace) == {}
        succeeded(materialize_incremental(workspace))
        assert online_rows(workspace)["shop 1"] == (day(19), NOW, 100, None)

    def test_the_file_is_as_the_engine_writes_one(self, workspace):
        sales = [Sale("b", day(3), day(4)), Sale("a", day(1), day(9)), Sale("c", day(3), day(3)), Sale("a", day(3))]
        push(workspace, "sales_push", rows_of(*sales))
        (pushed,) = workspace.offline.current(workspace.snapshot().views["shop_sales"].table).files
        succeeded(materialize_incremental(workspace))
        version = workspace.offline.current(workspace.snapshot().views["shop_sales"].table)
        (batch,) = (file for file in version.files if file.path != pushed.path)
        read, written = pq.read_table(pushed.path), pq.read_schema(batch.path)
        assert [(field.name, field.type) for field in read.schema] == [(field.name, field.type) for field in written]
        assert read["fs_origin"].to_pylist() == ["push"] * 4
        assert read["fs_seq"].to_pylist() == [1, 2, 0, 3]
        assert read["shop"].to_pylist() == ["a", "c", "b", "a"]
        assert pushed.max_created_us == NOW

    def test_every_view_of_the_source_is_fed(self, tmp_path):
        view = sales_view(pushed=True)
        views = [
            view,
            view.replaced(name="notes", fields=(Field("note", String),), online=False),
            view.replaced(name="by_sql", sql="SELECT * FROM sales_push"),
            sales_view().replaced(name="batch_only"),
        ]
        with closing(make_workspace(tmp_path, views, now_us=NOW)) as workspace:
            result = push(workspace, "sales_push", rows_of(Sale("shop 1", day(19), day(19), 1, "text")))
            assert {name: (done.online is None, done.offline.rows) for name, done in result.views.items()} == {
                "shop_sales": (False, 1),
                "notes": (True, 1),
            }
            assert log_rows(workspace, "notes") == [("shop 1", day(19), day(19), "text")]
            assert log_rows(workspace, "by_sql") == log_rows(workspace, "batch_only") == []
            assert result.note is not None
            assert "These views did not take the rows, which would have to pass through SQL: by_sql. " in result.note
            assert "`fs materialize` reads 'sales'" in result.note
            assert "batch_only" not in result.note
            online = push(workspace, "sales_push", rows_of(Sale("shop 2", day(19))), to="online")
            assert set(online.views) == {"shop_sales"}
            assert "in no training set" in online.note
            assert "through SQL: by_sql." in online.note

    def test_nothing_is_pushed_to_nobody(self, tmp_path):
        by_sql = sales_view(pushed=True).replaced(name="by_sql", sql="SELECT * FROM sales_push")
        with closing(make_workspace(tmp_path, [by_sql], now_us=NOW)) as workspace:
            with pytest.raises(InputError, match="only by SQL: by_sql"):
                push(workspace, "sales_push", rows_of(Sale("a", day(1))))
            with pytest.raises(NotFoundError, match="Did you mean 'sales_push'"):
                push(workspace, "sale_push", rows_of(Sale("a", day(1))))

    def test_a_source_that_no_view_reads(self, tmp_path):
        from featurestore import PushSource

        idle = PushSource("idle", sales_view().sources[0])
        with (
            closing(make_workspace(tmp_path, [sales_view(), idle], now_us=NOW)) as workspace,
            pytest.raises(InputError, match="read by no feature view"),
        ):
            push(workspace, "idle", rows_of(Sale("a", day(1))))

    def test_a_view_that_stays_offline_is_not_pushed_online(self, tmp_path):
        with closing(made(tmp_path, online=False)) as workspace:
            with pytest.raises(InputError, match="online"):
                push(workspace, "sales_push", rows_of(Sale("a", day(1))), to="online")
            assert push(workspace, "sales_push", rows_of(Sale("a", day(1)))).views["shop_sales"].online is None

    def test_no_rows(self, workspace):
        result = push(workspace, "sales_push", rows_of())
        assert (result.rows, counts(result)) == (0, (0, 0, 0, 0))
        assert result.views["shop_sales"].offline.version is None
        assert log_rows(workspace) == []

    def test_nowhere(self, workspace):
        with pytest.raises(InputError, match="everywhere"):
            push(workspace, "sales_push", rows_of(), to="everywhere")


class TestSchemas:
    def test_a_schema_that_was_removed_is_put_again_after_a_while(self, tmp_path, online_url, monkeypatch):
        monkeypatch.setattr(moments, "MOMENT_SECONDS", 3600.0)
        with closing(made(tmp_path, online_url)) as workspace:
            encoder = RecordEncoder(workspace.snapshot().views["shop_sales"].layout)
            push(workspace, "sales_push", rows_of(Sale("a", day(1))), to="online")
            workspace.online.delete(view_prefix(workspace.project, "shop_sales", 1))
            push(workspace, "sales_push", rows_of(Sale("a", day(2))), to="online")
            assert workspace.online.mget([encoder.schema_key]) == [None]  # one push after the other costs no more
            monkeypatch.setattr(moments, "MOMENT_SECONDS", 0.0)
            push(workspace, "sales_push", rows_of(Sale("a", day(3))), to="online")
            assert workspace.online.mget([encoder.schema_key]) == [encoder.schema_json]
            assert online_rows(workspace)["a"][0] == day(3)


class TestTrainingSets:
    def test_a_pushed_row_is_known_from_its_arrival(self, workspace):
        succeeded(materialize_incremental(workspace))
        push(workspace, "sales_push", rows_of(Sale("shop 1", day(15), None, 100)))
        times = [day(15) - 1, day(15), NOW - 1, NOW, NOW + DAY]
        assert training(workspace, times) == [9, 9, 9, 100, 100]
        assert training(workspace, times, as_of="event") == [9, 100, 100, 100, 100]

    def test_without_a_created_column_too(self, tmp_path):
        with closing(made(tmp_path, created=False)) as workspace:
            succeeded(materialize_incremental(workspace))
            push(workspace, "sales_push", rows_of(Sale("shop 1", day(15), None, 100)))
            times = [day(15) - 1, day(15), NOW - 1, NOW]
            assert training(workspace, times) == [9, 100, 100, 100]
            assert training(workspace, times, as_of="available") == [9, 9, 9, 100]

    def test_a_row_pushed_late_takes_its_place_in_history(self, workspace):
        succeeded(materialize_incremental(workspace))
        result = push(workspace, "sales_push", rows_of(Sale("shop 1", day(2), day(3), 100)))
        assert counts(result) == (0, 1, 0, 0)
        times = [day(2), day(3), day(5) - 1, day(5), NOW]
        assert training(workspace, times) == [1, 100, 100, 5, 9]
        assert online_rows(workspace) == newest(workspace)


class TestOrder:
    def test_equal_times_replace_and_older_ones_are_stale(self, tmp_path, online_url):
        with closing(made(tmp_path, online_url)) as workspace:
            steps = [
                (Sale("a", day(5), day(6), 1), (1, 0, 0, 0)),
                (Sale("a", day(5), day(6), 2), (1, 0, 0, 0)),
                (Sale("a", day(5), day(5), 3), (0, 1, 0, 0)),
                (Sale("a", day(4), day(9), 4), (0, 1, 0, 0)),
                (Sale("a", day(5), day(7), 5), (1, 0, 0, 0)),
            ]
            for sale, expected in steps:
                assert counts(push(workspace, "sales_push", rows_of(sale))) == expected, sale
                assert online_rows(workspace) == newest(workspace)
            assert online_rows(workspace) == {"a": (day(5), day(7), 5, None)}

    def test_of_equal_rows_in_one_push_the_last_counts(self, tmp_path, online_url):
        with closing(made(tmp_path, online_url)) as workspace:
            push(workspace, "sales_push", rows_of(*(Sale("a", day(5), day(6), number) for number in range(200))))
            assert online_rows(workspace) == newest(workspace) == {"a": (day(5), day(6), 199, None)}
            assert training(workspace, [NOW], "a") == [199]
            succeeded(materialize_incremental(workspace))
            assert online_rows(workspace)["a"] == (day(5), day(6), 199, None)

    def test_rows_long_expired_and_keys_that_hold_something_else(self, tmp_path, redis_url, redis_server):
        with closing(made(tmp_path, redis_url, ttl=timedelta(days=2))) as workspace:
            layout = workspace.snapshot().views["shop_sales"].layout
            with redis_server.client() as client:
                client.rpush(RecordEncoder(layout).keys.encode(["b"]).decode(), "a list")
            sales = [Sale("a", day(1)), Sale("b", day(19)), Sale("c", day(19))]
            assert counts(push(workspace, "sales_push", rows_of(*sales))) == (1, 0, 1, 1)
            assert len(log_rows(workspace)) == 3


class TestBesideMaterialization:
    @pytest.mark.uncounted
    def test_runs_and_watermarks_go_on_as_without_a_push(self, tmp_path):
        pushed, undisturbed = tmp_path / "pushed", tmp_path / "undisturbed"
        found = []
        for folder in (pushed, undisturbed):
            with closing(made(folder)) as workspace:
                runs = list(materialize_incremental(workspace, day(5)))
                if folder is pushed:
                    push(workspace, "sales_push", rows_of(Sale("shop 1", day(7), day(7), 100)))
                runs += materialize_incremental(workspace)
                runs += materialize_incremental(workspace)
                mark = watermark(workspace)
                found.append(
                    (
                        [(run.state, run.read, run.appended, run.unchanged) for run in runs],
                        (mark.intervals, mark.begun_us, mark.created_until_us, mark.files),
                    )
                )
                assert mark.published_version == mark.table_version
                assert online_rows(workspace) == newest(workspace)
        assert found[0] == found[1]

    def test_it_survives_a_rebuild_of_its_span(self, workspace):
        succeeded(materialize_incremental(workspace))
        push(workspace, "sales_push", rows_of(Sale("shop 1", day(8), day(8), 100)))
        write_sales(workspace.root / "sales.parquet", [sale for sale in SALES if sale.amount not in (7, 9)])
        (run,) = materialize(workspace, day(0), day(15), rebuild=True, confirm=lambda view, rows: True)
        assert (run.state, run.withdrawn) == ("done", 2)
        assert ("shop 1", day(8), day(8), 100, None) in log_rows(workspace)
        assert online_rows(workspace)["shop 1"] == (day(8), day(8), 100, None)
        assert online_rows(workspace) == newest(workspace)

    def test_the_batch_source_that_repeats_it_changes_nothing(self, workspace):
        push(workspace, "sales_push", rows_of(Sale("shop 1", day(12), day(12), 100)))
        write_sales(workspace.root / "sales.parquet", [*SALES, Sale("shop 1", day(12), day(12), 100)])
        (run,) = materialize_incremental(workspace)
        assert (run.appended, run.unchanged) == (len(SALES), 1)

    def test_optimize_keeps_it(self, workspace):
        succeeded(materialize_incremental(workspace))
        push(workspace, "sales_push", rows_of(Sale("shop 1", day(12), day(12), 100), Sale("shop 1", day(2), None, 7)))
        before = log_rows(workspace)
        assert optimize(workspace, None)[0].files_after == 1
        assert log_rows(workspace) == before
        push(workspace, "sales_push", rows_of(Sale("shop 1", day(12), day(12), 101)))
        assert training(workspace, [day(13)]) == [101]
        succeeded(materialize_incremental(workspace))
        assert online_rows(workspace) == newest(workspace)

    def test_a_push_before_anything_was_materialized(self, workspace):
        assert push(workspace, "sales_push", rows_of(Sale("a", day(1)))).views["shop_sales"].offline.version == 0
        succeeded(materialize_incremental(workspace))
        assert len(log_rows(workspace)) == len(SALES) + 1
        assert online_rows(workspace) == newest(workspace)

    def test_a_push_while_a_run_is_reading(self, workspace, monkeypatch):
        from featurestore.engine.duck.log import DuckLog

        stage, pushes = DuckLog.stage, iter([100])

        def stage_beside_a_push(log: Any, request: Any) -> Any:
            staged = stage(log, request)
            for amount in pushes:
                push(workspace, "sales_push", rows_of(Sale("shop 1", day(9), day(9), amount)))
            return staged

        monkeypatch.setattr(DuckLog, "stage", stage_beside_a_push)
        (run,) = materialize_incremental(workspace)
        # The run had to look again at what the log holds: its own row of the same times came later, and counts.
        assert (run.state, run.appended) == ("done", 10)
        assert len(log_rows(workspace)) == 11
        assert online_rows(workspace) == newest(workspace)
        assert watermark(workspace).published_version == 1

    def test_a_run_while_a_push_is_committing(self, workspace, monkeypatch):
        write, runs = workspace.offline.write, iter([1])

        def write_beside_a_run(*arguments: Any) -> Path:
            path = write(*arguments)
            for _ in runs:
                succeeded(materialize_incremental(workspace))
            return path

        monkeypatch.setattr(workspace.offline, "write", write_beside_a_run)
        result = push(workspace, "sales_push", rows_of(Sale("shop 1", day(9), day(9), 100)))
        assert result.views["shop_sales"].offline.version == 1
        assert log_rows(workspace)[-1] == ("shop 1", day(9), day(9), 100, None)
        assert len(log_rows(workspace)) == 11
        assert online_rows(workspace) == newest(workspace)
        assert not list(workspace.offline.staging(workspace.snapshot().views["shop_sales"].table).iterdir())

    def test_a_process_that_lost_its_online_store_has_committed(self, tmp_path, start_redis):
        server = start_redis()
        with closing(made(tmp_path, {"url": server.url, "write_timeout_ms": 1000})) as workspace:
            server.stop()
            with pytest.raises(OnlineStoreUnavailableError, match=r"'shop_sales' failed online.*Committed.*shop_sales"):
                push(workspace, "sales_push", rows_of(Sale("a", day(1))))
            assert [row[0] for row in log_rows(workspace)] == ["a"]

    def test_a_new_generation(self, workspace):
        push(workspace, "sales_push", rows_of(Sale("a", day(1), day(1), 1)))
        view = sales_view(pushed=True)
        changed = view.replaced(fields=(Field("amount", String), Field("note", String)))
        apply_records(workspace, [changed], generation=2)
        rows = {**rows_of(Sale("a", day(2), day(2))), "amount": ["many"]}
        assert push(workspace, "sales_push", rows).views["shop_sales"].offline.version == 0
        assert log_rows(workspace) == [("a", day(2), day(2), "many", None)]
        assert online_rows(workspace) == {"a": (day(2), day(2), "many", None)}

    def test_a_feature_that_came_later(self, workspace):
        push(workspace, "sales_push", rows_of(Sale("a", day(1), day(1), 1)))
        view = sales_view(pushed=True)
        apply_records(workspace, [view.replaced(fields=(*view.features, Field("price", Int64)))])
        with pytest.raises(InputError, match="no column 'price'"):
            push(workspace, "sales_push", rows_of(Sale("a", day(2))))
        push(workspace, "sales_push", {**rows_of(Sale("a", day(2), day(2), 2)), "price": [9]})
        assert log_rows(workspace) == [("a", day(1), day(1), 1, None, None), ("a", day(2), day(2), 2, None, 9)]


class TestGroups:
    @pytest.fixture(autouse=True)
    def whole_pause(self, short_pause, monkeypatch):
        monkeypatch.setattr(groups, "PAUSE_SECONDS", 2.0)  # a busy machine is slow to start threads

    def test_what_arrives_within_a_second_is_one_commit(self, workspace):
        first = push(workspace, "sales_push", rows_of(Sale("a", day(1), None, 0)), to="offline")
        assert first.views["shop_sales"].offline.version == 0
        versions = in_threads(
            8, lambda n: push(workspace, "sales_push", rows_of(Sale("a", day(1), None, n)), to="offline")
        )
        assert {result.views["shop_sales"].offline.version for result in versions} == {1}
        assert sorted(row[3] for row in log_rows(workspace)) == [0, *range(8)]

    def test_the_first_after_a_quiet_second_does_not_wait(self, workspace, monkeypatch):
        monkeypatch.setattr(groups, "PAUSE_SECONDS", 3600.0)
        push(workspace, "sales_push", rows_of(Sale("a", day(1))), to="offline")

    def test_a_commit_that_fails_fails_those_that_are_in_it_and_no_others(self, workspace, monkeypatch):
        commit, tries, later = DeltaStore.commit, [], []

        def fails_second(store: DeltaStore, *arguments: Any, **options: Any) -> Any:
            tries.append(1)
            if len(tries) == 2:
                later.append(ThreadPoolExecutor(1))
                later.append(later[0].submit(push, workspace, "sales_push", rows_of(Sale("a", day(2), None, 8))))
                until(lambda: any(committer._waiting for committer in workspace.committers.values()))
                raise DiskFullError("No space was left.")
            return commit(store, *arguments, **options)

        monkeypatch.setattr(DeltaStore, "commit", fails_second)
        push(workspace, "sales_push", rows_of(Sale("a", day(1), None, -1)))
        failed = in_threads(4, lambda n: push(workspace, "sales_push", rows_of(Sale("a", day(1), None, n))))
        assert [type(error) for error in failed] == [DiskFullError] * 4
        assert len({id(error) for error in failed}) == 4
        assert all("'shop_sales' failed offline" in str(error) for error in failed)
        assert later[1].result(timeout=60).views["shop_sales"].offline.version == 1
        later[0].shutdown()
        assert [row[3] for row in log_rows(workspace)] == [-1, 8]
        assert online_rows(workspace)["a"][2] == 8

    def test_a_commit_gives_way_to_others_until_its_patience_ends(self, workspace, monkeypatch):
        commit, tries = DeltaStore.commit, []

        def loses(store: DeltaStore, table: Any, *arguments: Any, **options: Any) -> Any:
            tries.append(1)
            if len(tries) <= 12:
                raise ConcurrentCommitError(f"Another writer committed to table {table}.")
            return commit(store, table, *arguments, **options)

        monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.02)
        monkeypatch.setattr(DeltaStore, "commit", loses)
        push(workspace, "sales_push", rows_of(Sale("a", day(1), None, 7)), to="offline")
        assert [row[3] for row in log_rows(workspace)] == [7]
        tries.clear()
        monkeypatch.setattr(groups, "PATIENCE_SECONDS", 0.0)
        with pytest.raises(ConcurrentCommitError, match="'shop_sales' failed offline"):
            push(workspace, "sales_push", rows_of(Sale("a", day(1), None, 8)), to="offline")
        assert [row[3] for row in log_rows(workspace)] == [7]

    @pytest.mark.uncounted
    def test_pushes_get_through_while_the_table_is_optimized(self, workspace, monkeypatch):
        monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.05)
        pushing = threading.Event()
        other = Workspace(workspace.root, workspace.settings, clock=workspace.clock)

        def optimize_on() -> None:
            while not pushing.is_set():
                optimize(other)

        with closing(other), ThreadPoolExecutor(1) as threads:
            optimizing = threads.submit(optimize_on)
            try:
                for amount in range(20):
                    push(workspace, "sales_push", rows_of(Sale("a", day(1), None, amount)), to="offline")
            finally:
                pushing.set()
            optimizing.result(timeout=60)
        assert sorted(row[3] for row in log_rows(workspace)) == list(range(20))

    @pytest.mark.uncounted
    def test_two_processes_commit_to_one_table(self, workspace, tmp_path_factory, monkeypatch):
        monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.1)
        # Another way to the same folder has a committer of its own, as another process has.
        other_root = tmp_path_factory.mktemp("other") / "link"
        other_root.symlink_to(workspace.root)
        other = Workspace(other_root, workspace.settings, clock=workspace.clock)

        def push_some(number: int) -> None:
            for amount in range(8):
                row = rows_of(Sale(f"shop {number}", day(1), day(1), amount))
                push(workspace if number % 2 else other, "sales_push", row, to="offline")

        with closing(other):
            assert in_threads(4, push_some) == [None] * 4
        for number in range(4):
            own = [row[3] for row in log_rows(workspace) if row[0] == f"shop {number}"]
            assert own == list(range(8))

    def test_two_revisions_of_a_view_are_committed_apart(self, workspace):
        old = workspace.snapshot().views["shop_sales"]
        view = sales_view(pushed=True)
        apply_records(workspace, [view.replaced(fields=(*view.features, Field("price", Int64)))])
        new = workspace.snapshot().views["shop_sales"]
        table = pa.table(
            {
                "shop": ["a"],
                "event_ts": pa.array([day(1)]).cast(INSTANT),
                "created_ts": pa.array([day(1)]).cast(INSTANT),
                "amount": [1],
                "note": pa.nulls(1, pa.string()),
            }
        )
        wider = table.append_column("price", pa.array([2]))
        done = [
            commit_rows(Pushed(workspace, registered), rows)
            for registered, rows in ((old, table), (new, wider), (old, table), (new, wider))
        ]
        versions = [future.result(timeout=60) for future in done]
        assert versions[0] < versions[1]
        assert [row[5] for row in sorted(log_rows(workspace), key=str)] == [2, 2, None, None]


def in_threads(count: int, work: Any) -> list[Any]:
    """Run work for each number in a thread of its own; returns results or errors."""
    found: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            found[number] = work(number)
        except FeatureStoreError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return found


class TestNothingIsWritten:
    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"shop": ["a", None]}, EntityKeyError, "join key 'shop' is null in row 1"),
            ({"shop": ["a", 7]}, EntityKeyError, "column 'shop', row 1: 7"),
            ({"sold_at": [day(1), day(2)]}, ValueTypeError, "column 'sold_at', row 0: "),
            ({"sold_at": ["2024-01-02T00:00:00Z", None]}, ValueTypeError, "column 'sold_at' is null in row 1"),
            ({"sold_at": ["2024-01-02T00:00:00Z", "soon"]}, ValueTypeError, "column 'sold_at', row 1: 'soon'"),
            ({"sold_at": pa.array([1, 2])}, ValueTypeError, "column 'sold_at': a column of type int64"),
            ({"amount": [1, "2"]}, ValueTypeError, "column 'amount', row 1: '2'"),
            ({"amount": [1, True]}, ValueTypeError, "column 'amount', row 1: True"),
            ({"amount": [1, 2**63]}, ValueTypeError, "column 'amount', row 1: 9223372036854775808"),
            ({"amount": pa.array([1.5, 2.0])}, ValueTypeError, "column 'amount', row 0: 1.5"),
            ({"note": [b"bytes", None]}, ValueTypeError, "column 'note', row 0: b'bytes'"),
            ({"amount": None}, InputError, "no column 'amount'"),
            ({"sold_at": None}, InputError, "no column 'sold_at'"),
            ({"amount": [1]}, InputError, "not equally long .*amount: 1"),
            ({"amount": "12"}, InputError, "'amount' of rows is str, not a list"),
        ],
    )
    def test_where_a_value_does_not_fit(self, workspace, change, error, message):
        rows = rows_of(Sale("a", day(1)), Sale("b", day(2))) | change
        with pytest.raises(error, match=message) as caught:
            push(workspace, "sales_push", {name: values for name, values in rows.items() if values is not None})
        assert isinstance(caught.value, InputError)
        assert log_rows(workspace) == []
        assert online_rows(workspace) == {}

    @pytest.mark.parametrize("form", [dict, lambda rows: pa.table(rows).to_pydict()])
    def test_where_a_time_lies_beyond_the_clock_skew(self, workspace, form):
        limit = NOW + 5_000_000
        for sale, column in ((Sale("a", limit + 1), "sold_at"), (Sale("a", NOW, limit + 1), "known_at")):
            with pytest.raises(ValueTypeError, match=f"column '{column}', row 1: .* lies in the future") as caught:
                push(workspace, "sales_push", form(rows_of(Sale("b", NOW), sale)))
            assert (caught.value.details["column"], caught.value.details["row"]) == (column, 1)
        assert counts(push(workspace, "sales_push", rows_of(Sale("a", limit, limit)))) == (1, 0, 0, 0)

    def test_a_misspelled_column_is_named(self, workspace):
        rows = rows_of(Sale("a", day(1)))
        with pytest.raises(InputError, match=r"no column 'amount'\. Did you mean 'amuont'"):
            push(workspace, "sales_push", {**{name: rows[name] for name in ("shop", "sold_at", "note")}, "amuont": [1]})


def test_one_view_that_fails_does_not_hide_what_another_committed(tmp_path, monkeypatch):
    view = sales_view(pushed=True)
    with closing(make_workspace(tmp_path, [view, view.replaced(name="twin")], now_us=NOW)) as workspace:
        commit = DeltaStore.commit

        def fails_for_twin(store: DeltaStore, table: Any, *arguments: Any, **options: Any) -> Any:
            if table.view == "twin":
                raise DiskFullError("No space was left.")
            return commit(store, table, *arguments, **options)

        monkeypatch.setattr(DeltaStore, "commit", fails_for_twin)
        with pytest.raises(
            DiskFullError, match=r"'twin' failed offline.*Committed offline before: shop_sales"
        ) as caught:
            push(workspace, "sales_push", rows_of(Sale("a", day(1))))
        assert caught.value.details["committed"] == ["shop_sales"]
        assert online_rows(workspace) == {}


def test_views_share_the_columns_of_a_source_each_in_its_own_type(tmp_path):
    view = sales_view(pushed=True)
    other: FeatureView = view.replaced(name="other", fields=(Field("amount", Int64), Field("note", String)))
    with closing(make_workspace(tmp_path, [view, other], now_us=NOW)) as workspace:
        push(workspace, "sales_push", rows_of(Sale("a", day(1), day(1), 2**60)))
        assert log_rows(workspace) == log_rows(workspace, "other") == [("a", day(1), day(1), 2**60, None)]
