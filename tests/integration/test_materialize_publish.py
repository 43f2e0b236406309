"""Publishing: what becomes of records when stores are down, full, or hold what nobody expected."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.materialized import (
    DAY,
    ExpectedLog,
    Sale,
    day,
    expected_online,
    log_rows,
    online_rows,
    sales_view,
    write_sales,
)
from support.projects import apply_records, make_workspace

from featurestore.ledger.watermarks import read_watermark
from featurestore.materialization import materialize, materialize_incremental, publish, republish
from featurestore.materialization.run import ViewRun
from featurestore.online.records.encoder import RecordEncoder
from featurestore.types.times import system_clock
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = day(20)
SALES = [Sale(f"shop {number % 40}", day(number / 20), day(number / 20), number) for number in range(100)]
CORRECTED = [Sale("shop 3", day(19), day(19), -3), Sale("new", day(18), day(18), -1)]


@pytest.fixture(params=["lmdb", "redis"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")


@pytest.fixture
def expected() -> ExpectedLog:
    log = ExpectedLog()
    log.read(SALES, day(0), NOW, NOW)
    return log


def filled(tmp_path, online_url, *, sales=SALES, now_us=NOW, **options) -> Workspace:
    write_sales(tmp_path / "sales.parquet", sales)
    return make_workspace(tmp_path, [sales_view(**options)], online_url=online_url, now_us=now_us)


def watermark(workspace):
    return read_watermark(workspace.ledger, workspace.snapshot().views["shop_sales"])


def encoder_of(workspace) -> RecordEncoder:
    return RecordEncoder(workspace.snapshot().views["shop_sales"].layout)


def commit_pushed(workspace, sales) -> None:
    """Append rows as a push does: to the offline table, not to the watermark."""
    registered = workspace.snapshot().views["shop_sales"]
    version = workspace.offline.current(registered.table)
    instant = pa.timestamp("us", tz="UTC")
    first = 0 if version is None else version.next_sequence
    columns = {
        "shop": pa.array([sale.shop for sale in sales]),
        "event_ts": pa.array([sale.sold_us for sale in sales], pa.int64()).cast(instant),
        "created_ts": pa.array([sale.known_us for sale in sales], pa.int64()).cast(instant),
        "fs_seq": pa.array(range(first, first + len(sales)), pa.int64()),
        "fs_origin": pa.array(["push"] * len(sales)),
        "amount": pa.array([sale.amount for sale in sales], pa.int64()),
        "note": pa.array([sale.note for sale in sales], pa.string()),
    }
    path = workspace.offline.staging(registered.table) / "pushed.parquet"
    pq.write_table(pa.table(columns), path)
    base = None if version is None else version.number
    workspace.offline.commit(registered.table, registered.table_schema, base=base, add=[path])


def test_the_schema_is_there_before_the_records(tmp_path, online_url):
    workspace = filled(tmp_path, online_url)
    materialize_incremental(workspace)
    encoder = encoder_of(workspace)
    assert workspace.online.mget([encoder.schema_key]) == [encoder.schema_json]
    workspace.close()


def test_many_batches_are_as_one(tmp_path, online_url, expected, monkeypatch):
    monkeypatch.setattr(publish, "BATCH_ROWS", 3)
    monkeypatch.setattr(publish, "MOST_WRITES", 10)
    workspace = filled(tmp_path, online_url)
    (run,) = materialize_incremental(workspace)
    assert run.published.written == 40
    assert online_rows(workspace) == expected_online(expected, NOW)
    workspace.close()


def test_records_of_many_bytes_go_in_calls_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "MOST_BYTES", 1_000_000)
    sales = [Sale(str(number), day(1), day(1), number, "x" * 1_000_000) for number in range(4)]
    workspace = filled(tmp_path, None, sales=sales)
    (run,) = materialize_incremental(workspace)
    assert run.published.written == 4
    assert {len(row[3]) for row in online_rows(workspace).values()} == {1_000_000}
    workspace.close()


class TestRedisInTrouble:
    def test_down_then_back(self, tmp_path, start_redis, expected):
        server = start_redis()
        workspace = filled(tmp_path, {"url": server.url, "write_timeout_ms": 1000})
        server.stop()
        (run,) = materialize_incremental(workspace)
        assert run.state == "failed"
        assert "Redis" in run.error
        assert run.appended == 100
        mark = watermark(workspace)
        assert (mark.table_version, mark.published_version) == (0, None)
        assert mark.intervals == ((day(0), NOW),)

        server.restart()
        (run,) = materialize_incremental(workspace)
        assert (run.state, run.appended, run.published.written) == ("done", 0, 40)
        assert online_rows(workspace) == expected_online(expected, NOW)
        assert watermark(workspace).published_version == 0
        workspace.close()

    def test_full_then_grown(self, tmp_path, start_redis):
        server = start_redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
        sales = [Sale(str(number), day(1), day(1), number, "x" * 1000) for number in range(4000)]
        workspace = filled(tmp_path, server.url, sales=sales)
        (run,) = materialize_incremental(workspace)
        assert run.state == "failed"
        assert "maxmemory" in run.error
        assert watermark(workspace).published_version is None
        with server.client() as client:
            client.config_set("maxmemory", "100mb")

        (run,) = materialize_incremental(workspace)
        assert run.state == "done"
        assert len(online_rows(workspace)) == 4000
        workspace.close()

    def test_a_key_of_another_type_is_reported_and_the_others_are_written(self, tmp_path, redis_url, redis_server):
        workspace = filled(tmp_path, redis_url)
        keys = [encoder_of(workspace).keys.encode([f"shop {number}"]) for number in range(8)]
        with redis_server.client() as client:
            for key in keys:
                client.rpush(key, "a list")
        (run,) = materialize_incremental(workspace)
        assert run.state == "done"
        assert (run.published.written, run.published.wrong_type) == (32, 8)
        shown = run.published.wrong_type_keys
        assert len(shown) == 5
        assert set(shown) <= {key.decode() for key in keys}
        with redis_server.client() as client:
            assert client.lrange(keys[0], 0, -1) == [b"a list"]
            client.delete(*keys)
        (run,) = republish(workspace)
        assert run.published.written == 40
        workspace.close()


class TestTimesAfterNow:
    def test_a_pushed_row_of_the_near_future_is_held_back_until_its_time(self, tmp_path, online_url, expected):
        workspace = filled(tmp_path, online_url)
        materialize_incremental(workspace)
        soon = NOW + 4_000_000
        commit_pushed(workspace, [Sale("shop 1", soon, soon, 111), Sale("shop 2", NOW - 1, NOW - 1, 222)])

        (run,) = materialize_incremental(workspace)
        rows = online_rows(workspace)
        assert rows["shop 2"][2] == 222
        assert rows["shop 1"] == expected_online(expected, NOW)["shop 1"]
        assert watermark(workspace).published_version == 0

        workspace.clock.set(soon)
        (run,) = materialize_incremental(workspace)
        assert run.published.written == 2
        assert online_rows(workspace)["shop 1"][2] == 111
        assert watermark(workspace).published_version == 1
        workspace.close()

    def test_a_pushed_row_that_becomes_known_later_is_held_back_too(self, tmp_path, expected):
        workspace = filled(tmp_path, None)
        materialize_incremental(workspace)
        commit_pushed(workspace, [Sale("shop 1", NOW - 1, NOW + 1_000_000, 111)])
        materialize_incremental(workspace)
        assert online_rows(workspace) == expected_online(expected, NOW)
        assert watermark(workspace).published_version == 0

        workspace.clock.set(NOW + 1_000_000)
        materialize_incremental(workspace)
        assert online_rows(workspace)["shop 1"][2] == 111
        assert watermark(workspace).published_version == 1
        workspace.close()

    def test_values_past_their_expiry_are_not_written(self, tmp_path, online_url):
        """Redis expires by its own clock, so this test's instants are real ones."""
        now = system_clock()
        sales = [Sale("fresh", now - DAY, now - DAY, 1), Sale("gone", now - 50 * DAY, now - 50 * DAY, 2)]
        workspace = filled(tmp_path, online_url, sales=sales, now_us=now, ttl=timedelta(days=7))
        (run,) = materialize_incremental(workspace)
        assert (run.published.written, run.published.expired) == (1, 1)
        assert set(online_rows(workspace)) == {"fresh"}
        assert watermark(workspace).online_rows == 1
        workspace.close()


class TestRebuild:
    def test_withdrawn_rows_give_way_to_the_next_best_or_go(self, tmp_path, online_url, expected):
        extra = [Sale("shop 1", day(10), day(10), -1), Sale("only", day(10), day(10), -2)]
        workspace = filled(tmp_path, online_url, sales=[*SALES, *extra])
        materialize_incremental(workspace)
        assert online_rows(workspace)["only"][2] == -2
        write_sales(tmp_path / "sales.parquet", SALES)

        asked = []
        (run,) = materialize(
            workspace, day(0), NOW, rebuild=True, confirm=lambda view, rows: asked.append((view, rows)) is None
        )
        assert asked == [("shop_sales", 2)]
        assert (run.state, run.withdrawn, run.appended) == ("done", 2, 0)
        assert (run.published.repaired, run.published.deleted) == (1, 1)
        assert log_rows(workspace) == expected.rows
        assert online_rows(workspace) == expected_online(expected, NOW)
        mark = watermark(workspace)
        assert (mark.offline_rows, mark.online_rows, mark.greatest_event_us) == (100, 40, day(99 / 20))
        workspace.close()

    @pytest.mark.parametrize("confirm", [None, lambda view, rows: False])
    def test_nothing_is_withdrawn_without_a_yes(self, tmp_path, confirm):
        workspace = filled(tmp_path, None)
        materialize_incremental(workspace)
        before = log_rows(workspace), online_rows(workspace), watermark(workspace)
        write_sales(tmp_path / "sales.parquet", [*SALES[:50], *CORRECTED])
        (run,) = materialize(workspace, day(0), NOW, rebuild=True, confirm=confirm)
        assert run.state == "failed"
        assert "would withdraw 50 rows" in run.error
        assert (log_rows(workspace), online_rows(workspace), watermark(workspace)) == before
        (run,) = materialize(workspace, day(0), day(2.4), rebuild=True, confirm=confirm)
        assert (run.state, run.withdrawn) == ("done", 0)  # nothing to be asked about
        workspace.close()

    def test_pushed_rows_stay(self, tmp_path):
        workspace = filled(tmp_path, None)
        materialize_incremental(workspace)
        commit_pushed(workspace, [Sale("pushed", day(1), day(1), 7)])
        write_sales(tmp_path / "sales.parquet", [])
        (run,) = materialize(workspace, day(0), NOW, rebuild=True, confirm=lambda view, rows: True)
        assert run.withdrawn == 100
        assert log_rows(workspace) == [("pushed", day(1), day(1), 7, None)]
        assert set(online_rows(workspace)) == {"pushed"}
        workspace.close()

    def test_damaged_files_are_left_out_and_read_again(self, tmp_path, online_url, expected):
        """Two of three files, one of them not published yet; not before the span covers them, and a yes."""
        write_sales(tmp_path / "sales.parquet", SALES[:50])
        workspace = make_workspace(tmp_path, [sales_view()], online_url=online_url, now_us=NOW)
        materialize(workspace, day(0), day(1))
        materialize(workspace, day(1), day(2.5))
        write_sales(tmp_path / "sales.parquet", SALES)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ViewRun, "publish_pending", lambda self: None)
            materialize(workspace, day(2.5), NOW)
        table = workspace.snapshot().views["shop_sales"].table
        files = sorted(workspace.offline.current(table).files, key=lambda file: file.min_event_us)
        for file in files[1:]:
            content = bytearray(Path(file.path).read_bytes())
            content[len(content) // 2] ^= 1
            Path(file.path).write_bytes(content)

        def rebuild(start, end, *, says=True):
            (run,) = materialize(workspace, start, end, rebuild=True, confirm=lambda view, rows: says)
            return run

        assert f"{files[1].path} is damaged" in rebuild(day(1.5), NOW).error
        assert (
            "0 rows that its source no longer holds as they were and 30 rows of damaged files"
            in rebuild(day(1), day(2.5), says=False).error
        )
        run = rebuild(day(1), day(2.5))
        assert f"{files[2].path} is damaged" in run.error  # it cannot be published yet
        assert (run.damaged, run.appended, run.withdrawn) == (30, 30, 0)
        run = rebuild(day(2.5), NOW)
        assert (run.state, run.damaged, run.appended, run.withdrawn) == ("done", 50, 50, 0)
        assert sorted(log_rows(workspace)) == sorted(expected.rows)
        assert online_rows(workspace) == expected_online(expected, NOW)
        workspace.offline.verify(workspace.offline.current(table).files, again=True)
        workspace.close()

    def test_damaged_files_that_decide_what_is_newest_are_not_published(self, tmp_path, online_url):
        """A correction of day 3 is not the newest, so a later file is read, too; the earlier one is not."""
        workspace = filled(tmp_path, online_url, sales=[Sale("a", day(1), day(1), 1)])
        materialize_incremental(workspace)
        write_sales(tmp_path / "sales.parquet", [Sale("a", day(5), day(5), 5)])
        materialize_incremental(workspace)
        registered = workspace.snapshot().views["shop_sales"]
        early, late = sorted(workspace.offline.current(registered.table).files, key=lambda file: file.min_event_us)
        sound = Path(late.path).read_bytes()
        for file in (early, late):
            content = bytearray(Path(file.path).read_bytes())
            content[len(content) // 2] ^= 1
            Path(file.path).write_bytes(content)
        write_sales(tmp_path / "sales.parquet", [Sale("a", day(3), day(19), 3)])
        (run,) = materialize_incremental(workspace)
        assert f"{late.path} is damaged" in run.error
        Path(late.path).write_bytes(sound)
        (run,) = materialize_incremental(workspace)
        assert run.state == "done"
        assert [row[2] for row in online_rows(workspace).values()] == [5]
        workspace.close()

    def test_records_of_files_that_were_cleaned_away_are_found_online(self, tmp_path, online_url, expected):
        """A rebuild that died before it published, and a cleaning before the next run."""
        workspace = filled(tmp_path, online_url, sales=[*SALES, Sale("only", day(10), day(10), -2)])
        materialize_incremental(workspace)
        registered = workspace.snapshot().views["shop_sales"]
        before = workspace.offline.current(registered.table)
        write_sales(tmp_path / "sales.parquet", SALES)
        folder = workspace.offline.staging(registered.table)
        from featurestore.engine.interface import Span

        found = workspace.engine.log.withdraw(
            registered.view, [file.path for file in before.files], Span(day(0), NOW), now_us=NOW, folder=folder
        )
        workspace.offline.commit(
            registered.table, registered.table_schema, base=0, add=found.written, remove=before.files
        )
        assert workspace.offline.clean(registered.table, keep=[]) == 1

        (run,) = materialize_incremental(workspace)
        assert run.published.deleted == 1
        assert online_rows(workspace) == expected_online(expected, NOW)
        workspace.close()


class TestRepublish:
    def test_brings_back_what_the_store_lost(self, tmp_path, online_url, expected):
        workspace = filled(tmp_path, online_url)
        materialize_incremental(workspace)
        workspace.online.delete(b"fs:shop:")
        (run,) = materialize_incremental(workspace)
        assert (run.appended, run.published.written) == (0, 40)  # unasked
        assert online_rows(workspace) == expected_online(expected, NOW)
        (run,) = materialize_incremental(workspace)
        assert run.published.written == 0
        (run,) = republish(workspace)
        assert (run.kind, run.state, run.table_version, run.published.written) == ("republish", "done", 0, 40)
        workspace.online.delete(b"fs:shop:")
        (run,) = republish(workspace)
        assert run.published.written == 40  # each entity once, though the store says nothing
        assert online_rows(workspace) == expected_online(expected, NOW)
        workspace.close()

    def test_of_a_table_that_is_not_there_is_nothing(self, tmp_path):
        workspace = filled(tmp_path, None)
        (run,) = republish(workspace, authoritative=True)
        assert (run.state, run.published.written) == ("done", 0)
        workspace.close()

    def test_authoritative_makes_the_store_equal_to_the_log(self, tmp_path, online_url, expected):
        workspace = filled(tmp_path, online_url)
        materialize_incremental(workspace)
        encoder = encoder_of(workspace)
        strange = [
            encoder.write(["nobody"], day(1), None, [1, None]),
            encoder.write(["shop 5"], day(19), day(19), [555, "never committed"]),
        ]
        workspace.online.write(strange, now_us=NOW)
        workspace.online.put(b"fs:shop:neighbour:{x}", b"not ours")
        (run,) = republish(workspace)
        assert run.published.stale == 1
        assert set(online_rows(workspace)) - set(expected_online(expected, NOW)) == {"nobody"}

        (run,) = republish(workspace, authoritative=True)
        assert (run.published.repaired, run.published.deleted) == (1, 1)
        assert online_rows(workspace) == expected_online(expected, NOW)
        assert workspace.online.mget([b"fs:shop:neighbour:{x}"]) == [b"not ours"]
        assert watermark(workspace).online_rows == 40
        workspace.close()


def test_a_feature_that_is_added_comes_with_the_rows_read_after(tmp_path):
    workspace = filled(tmp_path, None)
    materialize_incremental(workspace)
    from featurestore import Field
    from featurestore.types import Float64

    table = pq.read_table(tmp_path / "sales.parquet")
    price = pa.array([float(number) for number in range(len(table))])
    pq.write_table(table.append_column("price", price), tmp_path / "sales.parquet")
    view = sales_view()
    apply_records(workspace, [view.replaced(fields=(*view.fields, Field("price", Float64)))])

    (run,) = materialize(workspace, day(0), NOW)
    assert run.appended == 100
    assert online_rows(workspace)["shop 1"] == (day(81 / 20), day(81 / 20), 81, None, 81.0)
    workspace.close()


def test_the_clock_is_the_injected_one(tmp_path):
    workspace = filled(tmp_path, None)
    assert isinstance(workspace.clock, ManualClock)
    (run,) = materialize_incremental(workspace)
    assert run.started_us == NOW
    workspace.close()
