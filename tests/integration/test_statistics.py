"""Statistics of runs beside plain loops over what they appended, and the bins that runs share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from featurestore_registry.documents import QUANTILES, STATISTICS, BinsDocument, ColumnStatistics, StatisticsDocument
from featurestore_registry.records import Change
from support.materialized import Sale, day, sales_view, write_sales
from support.projects import make_workspace

from featurestore import Field
from featurestore.errors import LedgerConflictError, RegistryUnavailableError
from featurestore.ledger.generations import remember_generation
from featurestore.ledger.runs import all_runs
from featurestore.ledger.statistics import newest_statistics, read_edges, recent_statistics, write_statistics
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.status import status
from featurestore.maintenance.teardown import drop_data
from featurestore.materialization import jobs, materialize, materialize_incremental, republish, succeeded
from featurestore.statistics import runs
from featurestore.types import Int64, String
from featurestore.workspace import Workspace

NOW, KEY = day(400), "shop_sales.1"


def sale(number: int, amount: int | None, note: str | None = None) -> Sale:
    return Sale(f"shop {number % 7}", day(1) + number * 1_000_000, None, amount, note)


def ran(workspace: Workspace, sales: Sequence[Sale]) -> StatisticsDocument:
    """Run over the source with these rows and return the statistics of the run."""
    write_sales(workspace.root / "sales.parquet", sales)
    (run,) = succeeded(materialize_incremental(workspace))
    found = newest_statistics(workspace.ledger, workspace.project, KEY)
    assert found is not None
    assert found.run_id == run.run_id
    return found


def bins_of(workspace: Workspace, name: str = "amount") -> BinsDocument:
    edges, _ = read_edges(workspace.ledger, workspace.project, KEY)
    return edges.columns[name]


def column(found: StatisticsDocument, name: str) -> ColumnStatistics:
    return next(each for each in found.columns if each.name == name)


def counted_by_hand(bins: BinsDocument, values: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Count values in bins by a loop."""
    points, between, elsewhere = [0] * len(bins.points), [0] * (len(bins.edges) + 1) if bins.edges else [], 0
    for value in values:
        if value in bins.points:
            points[bins.points.index(value)] += 1
        elif not bins.edges:
            elsewhere += 1
        else:
            place = sum(edge <= value for edge in bins.edges)
            between[place - (value == bins.edges[-1])] += 1
    return points, between, elsewhere


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path, [sales_view(created=False)], now_us=NOW)


def test_a_run_leaves_statistics_of_what_it_appended(workspace: Workspace) -> None:
    amounts = [None if n % 10 == 0 else 0 if n % 3 == 0 else n * n for n in range(900)]
    with closing(workspace):
        found = ran(workspace, [sale(n, amount, "ab"[n % 2]) for n, amount in enumerate(amounts)])
        key, amount, note = found.columns
        assert (found.rows, found.sampled, found.revision) == (900, 900, workspace.snapshot().chain.head)
        assert found.files == {"sales": ("sales.parquet",)}
        assert (key.role, key.is_hidden, key.rows, key.nulls, key.distinct) == ("key", True, 900, 0, 7)
        assert key.minimum is key.maximum is key.mean is None
        assert key.top == key.quantiles == key.in_bins == key.at_points == ()
        values = sorted(value for value in amounts if value is not None)
        assert (amount.nulls, amount.minimum, amount.maximum) == (90, 0, values[-1])
        assert amount.distinct == len(set(values))
        mean = sum(values) / len(values)
        assert amount.mean == pytest.approx(mean)
        squares = sum((value - mean) ** 2 for value in values) / len(values)
        assert amount.deviation == pytest.approx(squares**0.5)
        ranks = [max(0, -(-round(share * len(values) * 10_000) // 10_000) - 1) for share in QUANTILES]
        assert list(amount.quantiles) == [values[rank] for rank in ranks]
        assert amount.top == ()  # more than 100 different ones
        bins = bins_of(workspace)
        assert bins.points == (0,)
        assert len(bins.edges) == 23
        assert (amount.bins, bins.version, bins.rows) == (1, 1, 900)
        wanted = counted_by_hand(bins, values)
        assert [[*amount.at_points], [*amount.in_bins], amount.elsewhere] == [*wanted]
        assert amount.in_bins[0] == amount.in_bins[-1] == 0
        assert max(amount.in_bins[3:-3]) - min(amount.in_bins[3:-3]) <= 2
        assert (note.top, note.quantiles, note.minimum) == ((("a", 450), ("b", 450)), (), "a")
        assert (bins_of(workspace, "note").points, note.at_points) == (("a", "b"), (450, 450))


def test_runs_share_bins_until_too_many_values_lie_outside(workspace: Workspace) -> None:
    with closing(workspace):
        sales = [sale(n, n % 1_000, "x") for n in range(10_000)]
        ran(workspace, sales)
        first = bins_of(workspace)
        more = [sale(10_000 + n, n + (500 if n % 10 == 0 else 0)) for n in range(800)]  # one in ten lies outside
        found = column(ran(workspace, [*sales, *more]), "amount")
        assert bins_of(workspace) == first
        assert [*found.in_bins] == counted_by_hand(first, [each.amount or 0 for each in more])[1]
        assert found.in_bins[-1] == 30
        far = [sale(20_000 + n, 5_000 + n) for n in range(100)]
        found = column(ran(workspace, [*sales, *more, *far]), "amount")
        second = bins_of(workspace)
        assert (found.bins, second.version, second.rows) == (2, 2, 10_900)
        assert second.edges[-1] >= 5_099
        assert second.edges[9] < 1_000  # from the log, of which this run is a hundredth
        assert sum(found.in_bins[1:-1]) == 100
        assert bins_of(workspace, "note").version == 1


def test_new_bins_hold_what_called_for_them(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOG_ROWS", 100)
    monkeypatch.setattr(runs, "LOG_PARTS", 1)  # of three files the second, which has none of the new rows
    with closing(workspace):
        sales = [sale(n, n % 1_000) for n in range(10_100)]
        ran(workspace, sales[:10_000])
        ran(workspace, sales)
        found = column(ran(workspace, [*sales, *(sale(20_000 + n, -n) for n in range(1, 101))]), "amount")
        bins = bins_of(workspace)
        assert (bins.version, bins.edges[0], len(bins.edges)) == (2, -100, 22)
        assert (found.in_bins[0], found.in_bins[1]) == (0, 100)


def test_rows_that_a_rebuild_writes_again_are_not_counted(workspace: Workspace) -> None:
    with closing(workspace):
        sales = [sale(n, n) for n in range(50)]
        ran(workspace, sales)
        write_sales(workspace.root / "sales.parquet", [*sales[:20], sale(99, 7), *sales[21:]])
        (run,) = succeeded(materialize(workspace, day(0), day(2), rebuild=True, confirm=lambda *_: True))
        assert (run.withdrawn, run.appended) == (1, 1)
        found = newest_statistics(workspace.ledger, workspace.project, KEY)
        assert found is not None
        assert (found.run_id, found.rows, column(found, "amount").maximum) == (run.run_id, 1, 7)


def test_bins_of_few_rows_are_provisional(workspace: Workspace) -> None:
    with closing(workspace):
        sales, versions = list[Sale](), []
        for until in (3, 5, 6, 12, 13, 23, 100, 10_000, 21_000):
            sales = [sale(n, n % 50) for n in range(until)]
            ran(workspace, sales)
            versions.append((bins_of(workspace, "amount").version, bins_of(workspace, "amount").rows))
        assert versions == [
            (1, 3), (1, 3), (2, 6), (3, 12), (3, 12), (3, 12), (4, 100), (5, 10_000), (5, 10_000),
        ]  # fmt: skip


def test_nothing_shows_of_personal_fields(tmp_path: Path) -> None:
    fields = [Field("amount", Int64, tags={"personal": "yes"}), Field("note", String, tags={"personal": "false"})]
    view = sales_view(created=False).model_copy(update={"fields": tuple(fields)})
    with closing(make_workspace(tmp_path, [view], now_us=NOW)) as workspace:
        found = ran(workspace, [sale(n, n % 5, "x") for n in range(50)])
        assert column(found, "amount") == ColumnStatistics("amount", "Int64", rows=50, distinct=5, is_hidden=True)
        assert column(found, "note").top == (("x", 50),)
        edges, _ = read_edges(workspace.ledger, workspace.project, KEY)
        assert set(edges.columns) == {"note"}


def test_in_bins_that_another_replaced_meanwhile_nothing_is_counted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*_: object, **__: object) -> None:
        raise LedgerConflictError("others were written")

    with closing(workspace):
        monkeypatch.setattr(runs, "write_edges", conflict)
        amount = column(ran(workspace, [sale(n, n % 5) for n in range(50)]), "amount")
        assert (amount.bins, amount.at_points, amount.in_bins, amount.distinct) == (None, (), (), 5)


def test_a_view_says_what_is_kept_of_it(tmp_path: Path) -> None:
    views = [
        sales_view(created=False).replaced(name=name, statistics=told)
        for name, told in (("silent", False), ("talks", ("note",)), ("usual", True))
    ]
    with closing(make_workspace(tmp_path, views, now_us=NOW)) as workspace:
        write_sales(tmp_path / "sales.parquet", [sale(n, n, f"n{n % 120:03}") for n in range(1_000)])
        succeeded(materialize_incremental(workspace))
        silent, talks, usual = (
            newest_statistics(workspace.ledger, workspace.project, f"{view.name}.1") for view in views
        )
        assert silent is None
        assert talks is not None
        assert usual is not None
        few, many = column(usual, "note"), column(talks, "note")
        assert (few.distinct, few.top, few.minimum, few.at_points, few.elsewhere) == (120, (), None, (), 1_000)
        assert many.top[:2] == (("n000", 9), ("n001", 9))
        assert (many.minimum, many.maximum, len(many.at_points)) == ("n000", "n119", 20)


def test_a_run_that_appends_nothing_writes_none(workspace: Workspace) -> None:
    with closing(workspace):
        sales = [sale(n, n) for n in range(9)]
        ran(workspace, sales)
        succeeded(materialize(workspace, day(0), day(2)))
        assert len(recent_statistics(workspace.ledger, workspace.project, KEY, limit=9)) == 1


def test_a_run_makes_up_for_statistics_that_there_are_none_of(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newest() -> StatisticsDocument | None:
        return newest_statistics(workspace.ledger, workspace.project, KEY)

    with closing(workspace):
        with monkeypatch.context() as killed:
            killed.setattr(jobs, "profile_run", lambda *_: None)
            for until in (5, 9):
                write_sales(workspace.root / "sales.parquet", [sale(n, n) for n in range(until)])
                succeeded(materialize_incremental(workspace))
        succeeded(materialize_incremental(workspace, dry_run=True))
        succeeded(republish(workspace))
        assert newest() is None
        (told,) = status(workspace)
        assert told.no_statistics == "shop_sales: no statistics: the next `fs materialize` counts its whole log."
        (run,) = succeeded(materialize_incremental(workspace))
        found = newest()
        assert found is not None
        assert (run.appended, found.rows, found.run_id, column(found, "amount").maximum) == (0, 9, run.run_id, 8)
        write_statistics(workspace.ledger, workspace.project, KEY, StatisticsDocument(0, 0, 0, ()))  # as `fs gc` does
        succeeded(materialize_incremental(workspace))
        found = newest()
        assert found is not None
        assert (found.rows, column(found, "amount").maximum) == (9, 8)
        monkeypatch.setattr(runs, "_profile", lambda *_: pytest.fail("counted again"))
        succeeded(materialize_incremental(workspace))
        assert newest() == found
        assert status(workspace)[0].no_statistics == ""
        monkeypatch.setattr(jobs, "profile_run", lambda *_: None)
        write_sales(workspace.root / "sales.parquet", [sale(n, n) for n in range(12)])
        (run,) = succeeded(materialize_incremental(workspace))
        assert status(workspace)[0].no_statistics == f"shop_sales: no statistics of its run {run.run_id}."


def test_rows_of_a_run_that_died_before_they_were_counted_are_told_of(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with closing(workspace):
        ran(workspace, [sale(n, n) for n in range(5)])
        with monkeypatch.context() as killed:
            killed.setattr(jobs, "profile_run", dies)
            killed.setattr(jobs, "record_end", lambda *_: None)
            write_sales(workspace.root / "sales.parquet", [sale(n, n) for n in range(7)])
            with pytest.raises(KeyboardInterrupt):
                materialize_incremental(workspace)
        (dead, *_) = all_runs(workspace.ledger, workspace.project, now_us=workspace.clock())
        assert dead.state == "killed"
        told = f"shop_sales: no statistics of its run {dead.run_id}."
        assert status(workspace)[0].no_statistics == told
        ran(workspace, [sale(n, n) for n in range(9)])
        assert status(workspace)[0].no_statistics == told
        with monkeypatch.context() as killed:  # one that died and had committed nothing
            killed.setattr(jobs, "_attempt", dies)
            killed.setattr(jobs, "record_end", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                materialize_incremental(workspace)
        assert status(workspace)[0].no_statistics == told


def test_nothing_is_made_up_for_a_view_without_statistics_or_rows(tmp_path: Path) -> None:
    silent = sales_view(created=False).replaced(name="silent", statistics=False)
    with closing(make_workspace(tmp_path, [silent, sales_view(created=False)], now_us=NOW)) as workspace:
        for sales in ([], [sale(1, 1)]):
            write_sales(tmp_path / "sales.parquet", sales)
            succeeded(materialize_incremental(workspace, views=["shop_sales"] if not sales else ["silent"]))
            succeeded(materialize_incremental(workspace, views=["shop_sales"] if not sales else ["silent"]))
        assert workspace.ledger.scan(workspace.project, STATISTICS) == []


@pytest.mark.parametrize("finish", [collect_garbage, drop_data], ids=["gc", "teardown"])
def test_statistics_go_with_the_data_that_they_are_of(workspace: Workspace, finish: Callable[[Workspace], Any]) -> None:
    with closing(workspace):
        ran(workspace, [sale(n, n) for n in range(9)])
        remember_generation(workspace.ledger, workspace.project, "shop_sales", 1)  # as an apply does
        collect_garbage(workspace)  # nothing is gone yet
        newest = newest_statistics(workspace.ledger, workspace.project, KEY)
        assert newest is not None
        assert newest.columns
        definitions, project = workspace.registry.definitions, workspace.project
        found = definitions.read(project)
        gone = [Change("delete", record.kind, record.name) for record in found.records]
        definitions.apply(project, found.chain.head, gone, author="", message="", commit="")
        for _ in range(2):
            finish(workspace)
            documents = recent_statistics(workspace.ledger, project, KEY, limit=9)
            assert [len(each.columns) for each in documents] == [0, len(newest.columns)]
        assert read_edges(workspace.ledger, project, KEY)[0].columns == {}


def test_no_run_fails_for_its_statistics(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(workspace):
        write_sales(workspace.root / "sales.parquet", [sale(n, n) for n in range(9)])
        real = type(workspace.ledger).append

        def refused(self: object, project: str, kind: str, *rest: object, **more: object) -> int:
            if kind in ("statistics", "edges"):
                raise RegistryUnavailableError("The registry is away.")
            return real(self, project, kind, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(type(workspace.ledger), "append", refused)
        with caplog.at_level(logging.WARNING, "featurestore"):
            (run,) = succeeded(materialize_incremental(workspace))
        assert run.appended == 9
        assert f"run {run.run_id} of shop_sales has no statistics: The registry is away." in caplog.text
