"""What `fs verify`, `fs status` and the loss in a plan say of what is online, against the records themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine

from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.consistency.online_rows import count_online
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.status import status
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize, republish, succeeded
from featurestore.online.interface import Repair, Write
from featurestore.online.records.codec import version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.types import Int64
from featurestore.types.times import system_clock
from featurestore.workspace import Workspace

# Redis expires by its own clock, so these instants are real ones.
NOW_US = system_clock()
HOUR_US = 3_600_000_000
KEPT = timedelta(hours=3)
"""The ttl of a view: its records are kept for a day more."""

Rows = Sequence[tuple[int, int, int]]
"""(shop, hours ago, amount)"""


def view(name: str, **options: object) -> FeatureView:
    source = PushSource("sales", ParquetSource("rows", "rows.parquet", "at"))
    shop = Entity("shop", {"shop": Int64})
    return FeatureView(name, entities=[shop], source=source, schema=[Field("amount", Int64)], **options)  # type: ignore[arg-type]


def columns(rows: Rows) -> dict[str, object]:
    shops, ages, amounts = zip(*rows, strict=True)
    at = pa.array([NOW_US - age * HOUR_US for age in ages], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return {"shop": list(shops), "at": at, "amount": list(amounts)}


@pytest.fixture(params=["lmdb", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Rows, Sequence[FeatureView]], FeatureStore]:
    settings = "project: shop\n"
    if request.param == "redis":
        settings += f"online_store: {{url: '{request.getfixturevalue('redis_url')}', read_timeout_ms: 5000}}\n"
    (tmp_path / "feature_store.yaml").write_text(settings)
    (tmp_path / "features.py").write_text("")

    def make(rows: Rows, views: Sequence[FeatureView]) -> FeatureStore:
        write_source(tmp_path, rows)
        store = FeatureStore(tmp_path, clock=ManualClock(NOW_US))
        request.addfinalizer(store.close)
        store.apply(views)
        store.materialize_incremental()
        return store

    return make


Make = Callable[[Rows, Sequence[FeatureView]], FeatureStore]


def write_source(root: Path, rows: Rows) -> None:
    pq.write_table(pa.table(columns(rows)), root / "rows.parquet")


def push(store: FeatureStore, rows: Rows, to: str = "both") -> None:
    store.push("sales", pa.table(columns(rows)), to)  # type: ignore[arg-type]


def record(workspace: Workspace, shop: int, hours: int, amount: int) -> Write:
    encoder = RecordEncoder(workspace.snapshot().registered("sales_view").layout)
    return encoder.write([shop], NOW_US - hours * HOUR_US, None, [amount])


def records_online(store: FeatureStore, name: str) -> int:
    """Return how many records of a view lie in the online store itself."""
    found = (key for batch in store.workspace.online.scan(b"fs:shop:%s:" % name.encode()) for key, _ in batch)
    return sum(b":schema:" not in key and b":marker:" not in key and not key.endswith(b":pushed") for key in found)


def test_the_loss_in_a_plan_reads_no_file_whose_rows_are_all_past_their_expiry(tmp_path: Path, make: Make) -> None:
    store = make([(1, 1_000, 1), (2, 1_000, 1)], [view("sales_view", ttl=KEPT)])
    workspace, registered = store.workspace, store.workspace.snapshot().views["sales_view"]
    push(store, [(3, 1, 7)])
    version = workspace.offline.current(registered.table)
    assert version is not None
    (old,) = (Path(file.path) for file in version.files if file.max_event_us < NOW_US - 900 * HOUR_US)
    old.unlink()
    watermark = replace(read_watermark(workspace.ledger, registered), online_rows=99)
    assert count_online(workspace, registered, watermark) == 1


def test_verify_counts_what_is_missing_older_different_and_newer(make: Make) -> None:
    store = make([(shop, 5, shop) for shop in range(1_000)], [view("sales_view")])
    workspace = store.workspace
    (found,) = verify(workspace)
    assert (found.records, found.compared, found.online_only, found.problems) == (1_000, 1_000, 0, ())
    event_us = NOW_US - 5 * HOUR_US

    def plant(shop: int, replacement: Write | None) -> None:
        key = record(workspace, shop, 5, 0).key
        assert workspace.online.repair([Repair(key, version_of(event_us, event_us), replacement)], now_us=NOW_US) == [
            True
        ]

    for shop in (10, 11, 12):
        plant(shop, None)
    for shop in (20, 21):
        plant(shop, record(workspace, shop, 6, shop))
    plant(30, record(workspace, 30, 5, -1))
    push(store, [(shop, 1, -2) for shop in (40, 41, 42, 43)], "online")
    push(store, [(5_000, 1, -2)], "online")
    (found,) = verify(workspace)
    assert (found.compared, found.online_only) == (1_000, 4)
    (problem,) = found.problems
    assert "3 missing, 2 older, 1 with other values, of 1,000 entities compared" in problem
    assert problem.endswith("Publish them again with `fs materialize --republish --view sales_view`.")
    succeeded(republish(workspace, ["sales_view"]))
    (found,) = verify(workspace)
    assert (found.compared, found.online_only, found.problems) == (1_000, 4, ())


@pytest.mark.uncounted
def test_verify_compares_the_same_thousand_of_many_each_time(make: Make) -> None:
    store = make([(shop, 5, shop) for shop in range(1_500)], [view("sales_view")])
    workspace = store.workspace
    for shop in range(0, 1_500, 3):
        event_us, key = NOW_US - 5 * HOUR_US, record(workspace, shop, 5, 0).key
        assert workspace.online.repair([Repair(key, version_of(event_us, event_us), None)], now_us=NOW_US) == [True]
    (first,), (second,) = verify(workspace), verify(workspace)
    assert first == second
    assert (first.records, first.compared) == (1_000, 1_000)
    # A third of all are gone; of a thousand that are chosen without regard to their numbers about as many.
    missing = int(first.problems[0].partition(" missing")[0].rpartition(" ")[2])
    assert 280 < missing < 390


def test_only_newer_records_are_no_problem(make: Make) -> None:
    store = make([(1, 5, 10), (2, 5, 20)], [view("sales_view")])
    push(store, [(1, 1, 11), (3, 1, 30)], "online")
    (found,) = verify(store.workspace)
    assert (found.records, found.compared, found.online_only, found.problems) == (3, 2, 1, ())


def check_counts(store: FeatureStore, expected: dict[str, int], *, offline: dict[str, int]) -> None:
    """Check what is said of each view, and that so many records are there."""
    assert {name: records_online(store, name) for name in expected} == expected
    assert {found.view: (found.online_rows, found.offline_rows) for found in status(store.workspace)} == {
        name: (expected[name], offline[name]) for name in expected
    }
    losses = {step.name: step.loss for step in store.plan_teardown().steps if step.kind == "feature_view"}
    assert {name: loss and (loss.online_rows, loss.offline_rows) for name, loss in losses.items()} == {
        name: (expected[name], offline[name]) for name in expected
    }


@pytest.mark.uncounted
def test_rows_online_are_counted_over_runs_pushes_expiry_and_withdrawals(make: Make) -> None:
    rows = [(shop, 5, shop) for shop in range(30)]
    views = [view("sales_view"), view("short", ttl=KEPT), view("hidden", online=False)]
    store = make(rows, views)
    check_counts(
        store, {"sales_view": 30, "short": 30, "hidden": 0}, offline={"sales_view": 30, "short": 30, "hidden": 30}
    )
    # Another run with other entities: a fifth of them long past the ttl and its grace.
    rows += [(shop, 4, shop) for shop in range(30, 46)] + [(shop, 40, shop) for shop in range(46, 50)]
    write_source(store.root, rows)
    store.materialize_incremental()
    check_counts(
        store, {"sales_view": 50, "short": 46, "hidden": 0}, offline={"sales_view": 50, "short": 50, "hidden": 50}
    )
    # Pushes count before a run has met them: three entities that are new, and two that are not.
    push(store, [(shop, 2, -1) for shop in (0, 1, 100, 101, 102)])
    check_counts(
        store, {"sales_view": 53, "short": 49, "hidden": 0}, offline={"sales_view": 55, "short": 55, "hidden": 55}
    )
    store.materialize_incremental()
    check_counts(
        store, {"sales_view": 53, "short": 49, "hidden": 0}, offline={"sales_view": 55, "short": 55, "hidden": 55}
    )
    # Ten entities leave the source, and a rebuild takes their rows out; two of them were pushed as well, and stay.
    write_source(store.root, rows[10:])
    succeeded(materialize(store.workspace, NOW_US - 50 * HOUR_US, NOW_US, rebuild=True, confirm=lambda *_: True))
    check_counts(
        store, {"sales_view": 45, "short": 41, "hidden": 0}, offline={"sales_view": 45, "short": 45, "hidden": 45}
    )


def test_a_record_that_has_expired_since_is_no_longer_counted(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_source(tmp_path, [(1, 2, 1), (2, 20, 2), (3, 26, 3)])
    clock = ManualClock(NOW_US)
    with FeatureStore(tmp_path, clock=clock) as store:
        store.apply([view("short", ttl=KEPT)])
        store.materialize_incremental()
        counts = []
        for hours in (0, 2, 8, 30):  # kept for 27 hours after the event
            clock.now_us = NOW_US + hours * HOUR_US
            (found,) = status(store.workspace)
            counts.append((found.online_rows, records_online(store, "short")))
    assert counts == [(3, 3), (2, 2), (1, 1), (0, 0)]


def test_the_command_shows_a_dash_for_a_view_that_is_not_online(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    store = make([(1, 5, 10), (2, 5, 20)], [view("sales_view"), view("hidden", online=False)])
    store.close()
    lines = {line.split()[0]: line for line in CommandLine(store.root, capsys)("status").splitlines()[1:]}
    assert " 2       2  " in lines["sales_view"]
    assert " 2       -  " in lines["hidden"]
