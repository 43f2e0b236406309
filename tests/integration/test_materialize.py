"""Materializing spans and what is new, into real stores, against plain loops over the source's rows."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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
from support.projects import make_workspace

from featurestore import Entity, FeatureView, Field, ParquetSource
from featurestore.errors import IntervalError, MaterializationError, NotFoundError
from featurestore.ledger.runs import all_runs
from featurestore.ledger.watermarks import read_watermark
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.types import Int64, String
from featurestore.types.times import MIN_INSTANT

pytestmark = pytest.mark.uncounted

NOW = day(20)

FIRST = [
    Sale("a", day(1), day(1.1), 1, "first"),
    Sale("b", day(2), day(2.1), 2),
    Sale("a", day(3), day(3.1), 3, "third"),
    Sale("a", day(3), day(3.2), 30, "known later"),
    Sale("c", day(4), None, 4, "never known"),
]


@pytest.fixture(params=["lmdb", "redis"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")


def watermark(workspace, view="shop_sales"):
    return read_watermark(workspace.ledger, workspace.snapshot().views[view])


def counts(run):
    names = ("read", "appended", "duplicates", "unchanged", "null_keys", "null_times", "waiting")
    return {name: getattr(run, name) for name in names}


class TestIncremental:
    def test_a_file_that_was_only_touched_does_not_undo_what_another_corrected(self, tmp_path):
        """A copy of the folder, a restore or a sync changes times and nothing else."""
        original, correction = tmp_path / "sales" / "b.parquet", tmp_path / "sales" / "a.parquet"
        write_sales(original, [Sale("a", day(1), None, 1), Sale("b", day(2), None, 2)])
        workspace = make_workspace(tmp_path, [sales_view(created=False, path="sales")], now_us=NOW)
        succeeded(materialize_incremental(workspace))
        write_sales(correction, [Sale("a", day(1), None, 10)])
        (corrected,) = succeeded(materialize_incremental(workspace))
        assert (corrected.read, corrected.appended) == (1, 1)
        after = log_rows(workspace)
        for touched in ([original], [original, correction]):
            for path in touched:
                path.touch()
            (run,) = succeeded(materialize_incremental(workspace))
            assert (run.read, run.appended) == (0, 0)
        assert log_rows(workspace) == after
        write_sales(original, [Sale("a", day(1), None, 1), Sale("b", day(2), None, 3)])  # by its own hand
        (run,) = succeeded(materialize_incremental(workspace))
        assert (run.read, run.appended) == (2, 2)
        workspace.close()

    def test_brings_everything_from_the_first_event_to_now(self, tmp_path, online_url):
        write_sales(tmp_path / "sales.parquet", FIRST)
        workspace = make_workspace(tmp_path, [sales_view()], online_url=online_url, now_us=NOW)
        expected = ExpectedLog()
        wanted = expected.read(FIRST, MIN_INSTANT, NOW, NOW)

        (run,) = materialize_incremental(workspace)

        assert run.state == "done"
        assert counts(run) == wanted
        assert run.intervals == ((day(1), NOW),)
        assert log_rows(workspace) == expected.rows
        assert online_rows(workspace) == expected_online(expected, NOW)
        assert run.published.written == 3
        mark = watermark(workspace)
        assert mark.intervals == ((day(1), NOW),)
        assert (mark.offline_rows, mark.online_rows) == (5, 3)
        assert mark.table_version == mark.published_version == run.table_version
        assert mark.greatest_event_us == day(4)
        assert mark.created_until_us == day(3.2) - DAY
        workspace.close()

    def test_a_rerun_appends_and_publishes_nothing(self, tmp_path, online_url):
        write_sales(tmp_path / "sales.parquet", FIRST)
        workspace = make_workspace(tmp_path, [sales_view()], online_url=online_url, now_us=NOW)
        materialize_incremental(workspace)
        before = log_rows(workspace), online_rows(workspace)

        for again in (
            lambda: materialize_incremental(workspace),
            lambda: materialize(workspace, day(0), NOW),
            lambda: materialize(workspace, day(2), day(3)),
        ):
            (run,) = again()
            assert run.state == "done"
            assert run.appended == 0
            assert run.published.written == 0
            assert (log_rows(workspace), online_rows(workspace)) == before
        assert watermark(workspace).table_version == 0
        workspace.close()

    def test_reads_late_rows_and_corrections_by_created_time(self, tmp_path):
        write_sales(tmp_path / "sales.parquet", FIRST)
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        expected = ExpectedLog()
        expected.read(FIRST, MIN_INSTANT, NOW, NOW)
        materialize_incremental(workspace)
        later = NOW + DAY
        sales = [
            *FIRST,
            Sale("a", day(2), day(19), 2, "late"),
            Sale("b", day(2), day(19), 22, "corrected"),
            Sale("z", day(0.5), day(19), 0, "before all others"),
            Sale("a", day(20.5), day(20.6), 205),
        ]
        write_sales(tmp_path / "sales.parquet", sales)
        workspace.clock.set(later)

        (run,) = materialize_incremental(workspace)

        expected.read(sales, MIN_INSTANT, later, later)
        assert run.appended == 4
        assert run.read < len(sales)  # the rest was created before created_until
        assert log_rows(workspace) == expected.rows
        assert online_rows(workspace) == expected_online(expected, later)
        mark = watermark(workspace)
        assert mark.intervals == ((day(0.5), later),)
        assert mark.created_until_us == day(20.6) - DAY
        workspace.close()

    def test_lateness_beyond_the_allowed_is_left_to_an_explicit_run(self, tmp_path):
        newest = Sale("a", day(10), day(10), 1)
        write_sales(tmp_path / "sales.parquet", [newest])
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        materialize_incremental(workspace)
        in_time = Sale("b", day(10.5), day(9.5), 2)
        too_late = Sale("c", day(10.5), day(8.9), 3)
        write_sales(tmp_path / "sales.parquet", [newest, in_time, too_late])

        (run,) = materialize_incremental(workspace)
        assert {row[0] for row in log_rows(workspace)} == {"a", "b"}
        assert run.appended == 1

        (run,) = materialize(workspace, day(10), day(11))
        assert run.appended == 1
        assert {row[0] for row in log_rows(workspace)} == {"a", "b", "c"}
        workspace.close()

    def test_a_value_that_goes_there_and_back_ends_where_it_began(self, tmp_path, online_url):
        workspace = None
        expected = ExpectedLog()
        for value in ("A", "B", "A"):
            sales = [Sale("a", day(1), day(1), 1, value)]
            write_sales(tmp_path / "sales.parquet", sales)
            if workspace is None:
                workspace = make_workspace(tmp_path, [sales_view()], online_url=online_url, now_us=NOW)
            expected.read(sales, day(0), NOW, NOW)
            (run,) = materialize(workspace, day(0), NOW)
            assert run.appended == 1
        assert [row[4] for row in log_rows(workspace)] == ["A", "B", "A"]
        assert online_rows(workspace) == expected_online(expected, NOW) == {"a": (day(1), day(1), 1, "A")}
        workspace.close()

    def test_fills_the_gaps_that_explicit_runs_left(self, tmp_path):
        sales = [Sale("a", day(number), day(number), number) for number in range(10)]
        write_sales(tmp_path / "sales.parquet", sales)
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        materialize(workspace, day(3), day(5))
        materialize(workspace, day(7), day(8))
        assert watermark(workspace).intervals == ((day(3), day(5)), (day(7), day(8)))
        assert [row[3] for row in log_rows(workspace)] == [3, 4, 7]

        (run,) = materialize_incremental(workspace, day(9))
        assert run.intervals == ((day(0), day(3)), (day(5), day(7)), (day(8), day(9)))
        assert sorted(row[3] for row in log_rows(workspace)) == list(range(9))
        assert watermark(workspace).intervals == ((day(0), day(9)),)
        workspace.close()

    def test_an_explicit_run_does_not_hide_late_rows_of_other_spans(self, tmp_path):
        sales = [Sale("a", day(1), day(1), 1)]
        write_sales(tmp_path / "sales.parquet", sales)
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        materialize(workspace, day(0), day(2))
        sales += [Sale("a", day(10), day(10), 10), Sale("a", day(1.5), day(5), 15, "late")]
        write_sales(tmp_path / "sales.parquet", sales)
        materialize(workspace, day(9), day(11))

        materialize_incremental(workspace)
        assert {row[3] for row in log_rows(workspace)} == {1, 10, 15}
        workspace.close()

    def test_of_an_empty_source_there_is_nothing_and_later_everything(self, tmp_path):
        write_sales(tmp_path / "sales.parquet", [])
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        (run,) = materialize_incremental(workspace)
        assert (run.state, run.read, run.table_version) == ("done", 0, None)
        assert watermark(workspace).intervals == ()

        write_sales(tmp_path / "sales.parquet", FIRST)
        (run,) = materialize_incremental(workspace)
        assert run.appended == 5
        workspace.close()

    def test_rows_dated_after_now_wait_for_their_time(self, tmp_path, online_url):
        sales = [
            Sale("a", day(1), day(1), 1),
            Sale("a", day(2), NOW + DAY, 2, "known tomorrow"),
            Sale("a", NOW + 2 * DAY, NOW + 2 * DAY, 3, "happens the day after"),
        ]
        write_sales(tmp_path / "sales.parquet", sales)
        workspace = make_workspace(tmp_path, [sales_view()], online_url=online_url, now_us=NOW)
        (run,) = materialize_incremental(workspace)
        assert (run.appended, run.waiting) == (1, 2)
        assert online_rows(workspace)["a"][2] == 1
        for later, value in ((NOW + DAY, 2), (NOW + 3 * DAY, 3)):
            workspace.clock.set(later)
            (run,) = materialize_incremental(workspace)
            assert run.appended == 1
            assert online_rows(workspace)["a"][2] == value
        workspace.close()

    @pytest.mark.parametrize("created", [True, False])
    def test_a_source_of_the_future_alone_waits_and_hides_nothing_older(self, tmp_path, created):
        write_sales(tmp_path / "sales.parquet", [Sale("a", NOW + DAY, None, 1)])
        workspace = make_workspace(tmp_path, [sales_view(created=created)], now_us=NOW)
        (run,) = materialize_incremental(workspace)
        assert (run.state, run.appended, run.waiting) == ("done", 0, 1)
        write_sales(tmp_path / "sales.parquet", [Sale("a", NOW + DAY, None, 1), Sale("a", day(1), None, 2)])
        (run,) = materialize_incremental(workspace)
        assert (run.appended, run.waiting) == (1, 1)
        workspace.clock.set(NOW + 2 * DAY)
        (run,) = materialize_incremental(workspace)
        assert (run.appended, run.waiting) == (1, 0)
        assert [row[3] for row in log_rows(workspace)] == [2, 1]
        workspace.close()

    def test_null_keys_null_times_and_duplicates_are_counted(self, tmp_path):
        sales = [
            Sale(None, day(1), day(1), 1),
            Sale("a", None, day(1), 2),
            Sale(None, None, None, 3),
            Sale("a", day(1), day(1), 4),
            Sale("a", day(1), day(1), 5),
            Sale("a", day(1), None, 6),  # known when it happened: the same instant
        ]
        write_sales(tmp_path / "sales.parquet", sales)
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        (run,) = materialize_incremental(workspace)
        assert counts(run) == ExpectedLog().read(sales, MIN_INSTANT, NOW, NOW)
        assert (run.null_keys, run.null_times, run.duplicates, run.appended) == (1, 2, 2, 1)
        assert log_rows(workspace) == [("a", day(1), None, 6, None)]
        workspace.close()

    def test_rows_that_all_lack_their_time_are_counted_by_each_run(self, tmp_path):
        write_sales(tmp_path / "sales.parquet", [Sale("a", None, day(1), 2), Sale("b", None, None, 3)])
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        for _ in range(2):
            (run,) = materialize_incremental(workspace)
            assert (run.state, run.appended, run.null_times) == ("done", 0, 2)
            assert run.notes() == ["dropped 0 rows with a null key and 2 without event time"]
        write_sales(tmp_path / "sales.parquet", [Sale("a", day(1), day(1), 4), Sale("b", None, None, 3)])
        (run,) = materialize_incremental(workspace)
        assert (run.appended, run.null_times) == (1, 1)
        workspace.close()


class TestSourcesWithoutCreatedColumn:
    def test_new_and_changed_files_are_read_whole(self, tmp_path):
        folder = tmp_path / "sales"
        one = [Sale("a", day(1), None, 1), Sale("b", day(2), None, 2)]
        write_sales(folder / "1.parquet", one)
        write_sales(folder / "2.parquet", [Sale("c", day(3), None, 3)])
        workspace = make_workspace(tmp_path, [sales_view(created=False, path="sales")], now_us=NOW)
        materialize_incremental(workspace)
        assert watermark(workspace).created_until_us is None

        (run,) = materialize_incremental(workspace)
        assert run.read == 0

        write_sales(folder / "1.parquet", [replace(one[0], amount=11), one[1], Sale("d", day(0.5), None, 4)])
        write_sales(folder / "0.parquet", [Sale("e", day(0.2), None, 5)])
        (run,) = materialize_incremental(workspace)
        assert (run.read, run.appended, run.unchanged) == (4, 3, 1)
        assert online_rows(workspace)["a"][2] == 11
        assert {row[0] for row in log_rows(workspace)} == set("abcde")
        assert watermark(workspace).intervals == ((day(0.2), NOW),)

        (folder / "0.parquet").unlink()
        (run,) = materialize_incremental(workspace)
        assert (run.read, run.appended) == (0, 0)
        workspace.close()

    def test_a_file_that_changed_under_an_explicit_run_is_still_found(self, tmp_path):
        path = tmp_path / "sales.parquet"
        write_sales(path, [Sale("a", day(1), None, 1), Sale("b", day(5), None, 5)])
        workspace = make_workspace(tmp_path, [sales_view(created=False)], now_us=NOW)
        materialize_incremental(workspace, day(6))
        write_sales(path, [Sale("a", day(1), None, 100), Sale("b", day(5), None, 5), Sale("b", day(7), None, 7)])
        materialize(workspace, day(6), day(8))
        assert online_rows(workspace)["a"][2] == 1

        materialize_incremental(workspace)
        assert online_rows(workspace)["a"][2] == 100
        workspace.close()


PLANES = pa.schema([("shop", pa.string()), ("size", pa.int64()), ("measured_at", pa.timestamp("us", tz="UTC"))])


def joined_view(*, created: bool) -> FeatureView:
    sales = sales_view(created=created).batch_sources[0]
    sizes = ParquetSource("sizes", path="sizes.parquet", timestamp_field="measured_at")
    known = ", known_at" if created else ""
    return FeatureView(
        "sizes_of_sales",
        entities=[Entity("shop", join_keys={"shop": String})],
        source=[sales, sizes],
        schema=[Field("amount", Int64), Field("size", Int64)],
        sql=f"SELECT shop, sold_at{known}, amount, size FROM sales LEFT JOIN sizes USING (shop)",
    )


def write_sizes(path, sizes):
    columns = [pa.array(list(sizes)), pa.array(list(sizes.values()), pa.int64()), pa.nulls(len(sizes), PLANES[2].type)]
    pq.write_table(pa.table(columns, schema=PLANES), path)


def _sizes_online(workspace):
    return {shop: row[-1] for shop, row in online_rows(workspace, "sizes_of_sales").items()}


@pytest.mark.parametrize("created", [True, False])
def test_a_change_in_a_joined_source_is_read_for_all_that_is_committed(tmp_path, created):
    write_sales(tmp_path / "sales.parquet", FIRST)
    write_sizes(tmp_path / "sizes.parquet", {"a": 10, "b": 20})
    workspace = make_workspace(tmp_path, [joined_view(created=created)], now_us=NOW)
    materialize_incremental(workspace)
    assert {row[0]: row[-1] for row in log_rows(workspace, "sizes_of_sales")} == {"a": 10, "b": 20, "c": None}
    (run,) = materialize_incremental(workspace)
    assert run.appended == 0

    write_sizes(tmp_path / "sizes.parquet", {"a": 10, "b": 21, "c": 30})
    (run,) = materialize_incremental(workspace)

    assert run.appended == 2
    assert _sizes_online(workspace) == {"a": 10, "b": 21, "c": 30}

    sales = [*FIRST, Sale("b", day(5), day(19), 50)]
    write_sales(tmp_path / "sales.parquet", sales)
    (run,) = materialize_incremental(workspace)
    assert run.appended == 1
    assert run.read == (4 if created else 6)  # created after the limit, or all
    workspace.close()


class TestDryRun:
    def test_counts_and_writes_nothing(self, tmp_path, monkeypatch):
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        write_sales(tmp_path / "sales.parquet", FIRST)
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        registry = (tmp_path / "data" / "registry.db").read_bytes()

        for run in (
            *materialize_incremental(workspace, dry_run=True),
            *materialize(workspace, day(0), NOW, dry_run=True),
            *materialize(workspace, day(0), NOW, dry_run=True, rebuild=True),
        ):
            assert (run.state, run.read, run.appended, run.dry_run) == ("done", 5, 5, True)

        assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == ["registry.db"]
        assert (tmp_path / "data" / "registry.db").read_bytes() == registry
        assert list(temporary.iterdir()) == []
        workspace.close()

    def test_tells_how_many_rows_a_rebuild_would_withdraw(self, tmp_path):
        write_sales(tmp_path / "sales.parquet", FIRST)
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        materialize_incremental(workspace)
        before = log_rows(workspace), online_rows(workspace), watermark(workspace)
        write_sales(tmp_path / "sales.parquet", FIRST[:2])
        (run,) = materialize(workspace, day(0), day(3.5), dry_run=True, rebuild=True)
        assert (run.withdrawn, run.appended, run.unchanged) == (2, 0, 2)
        assert (log_rows(workspace), online_rows(workspace), watermark(workspace)) == before
        workspace.close()


class TestRefused:
    def test_intervals(self, tmp_path):
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        for start, end in ((day(1), day(1)), (day(2), day(1)), (day(1), NOW + 1)):
            with pytest.raises(IntervalError, match="empty" if start >= end else "future"):
                materialize(workspace, start, end)
        with pytest.raises(IntervalError, match="future"):
            materialize_incremental(workspace, NOW + 1)
        assert all_runs(workspace.ledger, workspace.project, now_us=NOW) == []
        workspace.close()

    def test_an_unknown_view(self, tmp_path):
        workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
        for run in (
            lambda: materialize(workspace, day(0), day(1), ["shop_sale"]),
            lambda: materialize_incremental(workspace, views=["shop_sale"]),
            lambda: republish(workspace, ["shop_sale"]),
        ):
            with pytest.raises(NotFoundError, match="Did you mean 'shop_sales'"):
                run()
        workspace.close()


def test_a_view_that_fails_does_not_keep_others_from_being_done(tmp_path):
    write_sales(tmp_path / "sales.parquet", FIRST)
    broken = FeatureView(
        "broken",
        entities=[Entity("shop", join_keys={"shop": String})],
        source=ParquetSource("missing", path="missing.parquet", timestamp_field="sold_at"),
        schema=[Field("amount", Int64)],
    )
    workspace = make_workspace(tmp_path, [sales_view(), broken], now_us=NOW)
    runs = materialize_incremental(workspace)
    assert [(run.view, run.state) for run in runs] == [("broken", "failed"), ("shop_sales", "done")]
    assert "missing.parquet" in runs[0].error
    with pytest.raises(MaterializationError, match="1 of 2 feature views failed") as caught:
        succeeded(runs)
    assert caught.value.details["views"] == ["broken"]
    assert succeeded(runs[1:]) == runs[1:]
    with pytest.raises(MaterializationError, match=r"^The feature view failed:\n  - broken: "):
        succeeded(runs[:1])
    with pytest.raises(MaterializationError, match=r"^All 2 feature views failed:"):
        succeeded(runs[:1] * 2)
    recorded = all_runs(workspace.ledger, workspace.project, now_us=NOW)
    assert sorted(recorded, key=lambda run: run.view) == runs
    assert len(online_rows(workspace)) == 3
    workspace.close()


def test_views_that_stay_offline_are_never_published(tmp_path):
    write_sales(tmp_path / "sales.parquet", FIRST)
    workspace = make_workspace(tmp_path, [sales_view(online=False)], now_us=NOW)
    for run in (*materialize_incremental(workspace), *republish(workspace)):
        assert run.state == "done"
        assert run.published.written == 0
    assert watermark(workspace).published_version is None
    assert not (tmp_path / "data" / "online").exists()
    workspace.close()


def test_a_table_that_is_older_than_the_ledger_says_is_refused(tmp_path):
    write_sales(tmp_path / "sales.parquet", FIRST)
    workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
    materialize_incremental(workspace)
    (tmp_path / "data" / "offline").rename(tmp_path / "data" / "elsewhere")
    for run in (*materialize_incremental(workspace), *republish(workspace, authoritative=True)):
        assert run.state == "failed"
        assert "has no table shop/shop_sales/1, but version 0 of it was committed" in run.error
    assert len(online_rows(workspace)) == 3
    workspace.close()


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_of_changes_and_runs_ends_as_plain_loops_say(tmp_path, seed, request):
    """Random corrections, late rows, duplicates and withdrawals; spans, incremental runs and rebuilds in any order."""
    dice = random.Random(seed)
    online_url = request.getfixturevalue("redis_url") if seed % 2 else None
    view = sales_view(ttl=None, path="sales.parquet")
    source = view.batch_sources[0]
    patient = ParquetSource("sales", source.path, "sold_at", "known_at", allowed_lateness=timedelta(days=365))
    view = view.replaced(sources=(patient,))
    now = NOW
    sales = [random_sale(dice, now) for _ in range(30)]
    write_sales(tmp_path / "sales.parquet", sales)
    workspace = make_workspace(tmp_path, [view], online_url=online_url, now_us=now)
    expected = ExpectedLog()
    for _ in range(5):
        now += DAY
        workspace.clock.set(now)
        sales = [random_sale(dice, now, of=sale) if dice.random() < 0.1 else sale for sale in sales]
        sales += [random_sale(dice, now) for _ in range(dice.randrange(8))]
        kind = dice.choice(["incremental", "interval", "rebuild"])
        if kind == "rebuild":
            sales = [sale for sale in sales if dice.random() > 0.2]
        write_sales(tmp_path / "sales.parquet", sales)
        start, end = sorted(day(dice.randrange(0, 20)) for _ in range(2))
        end += DAY
        if kind == "incremental":
            (run,) = materialize_incremental(workspace)
            expected.read(sales, MIN_INSTANT, now, now)
        else:
            (run,) = materialize(workspace, start, end, rebuild=kind == "rebuild", confirm=lambda view, rows: True)
            wanted = expected.read(sales, start, end, now)
            assert counts(run) == wanted
            if kind == "rebuild":
                assert run.withdrawn == expected.withdraw(sales, start, end)
        assert run.state == "done", run.error
        assert sorted(log_rows(workspace), key=repr) == sorted(expected.rows, key=repr)
        assert online_rows(workspace) == expected_online(expected, now)
        assert watermark(workspace).offline_rows == len(expected.rows)
    workspace.close()


def random_sale(dice: random.Random, now: int, *, of: Sale | None = None) -> Sale:
    """Return a sale among few shops and instants, so that ties are common; or a correction of one."""
    amount = dice.choice([None, 0, 1, 2, 2**63 - 1])
    if of is not None:
        return replace(of, amount=amount)
    sold = day(dice.randrange(0, 20))
    known = dice.choice([None, sold, sold + DAY, now - DAY, now + DAY])
    return Sale(dice.choice(["a", "b", "c", "ü|%", "", None]), dice.choice([sold, sold, sold, None]), known, amount)
