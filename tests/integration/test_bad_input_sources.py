"""Runs that meet a bad source, a store in trouble or a full disk: a clear error, nothing changed, then completed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.disks import small_disk
from support.faults import FaultProxy
from support.materialized import (
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
from support.redis_server import RedisServer

from featurestore.errors import FeatureStoreError, SourceError
from featurestore.ledger.runs import RunResult
from featurestore.ledger.watermarks import read_watermark
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.training import get_historical_features
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = day(20)
FIRST = [Sale(f"shop {number}", day(number), day(number), number, "first") for number in range(1, 5)]
SECOND = [Sale(f"shop {number}", day(10 + number), day(10 + number), 10 * number, "second") for number in range(1, 7)]


def opened(root: Path, **options: Any) -> Workspace:
    return make_workspace(root, [sales_view(path="sales", **options)], now_us=NOW)


@pytest.fixture(scope="module")
def begun_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("begun")
    write_sales(root / "sales" / "1.parquet", FIRST)
    with closing(opened(root)) as workspace:
        succeeded(materialize_incremental(workspace))
    return root


@pytest.fixture
def workspace(begun_once: Path, tmp_path: Path) -> Iterator[Workspace]:
    """A workspace whose first file is materialized."""
    shutil.copytree(begun_once, tmp_path, dirs_exist_ok=True)
    with closing(opened(tmp_path)) as workspace:
        yield workspace


def state(workspace: Workspace) -> Any:
    """Return all that a run may change, but for the ledger's note that it ran."""
    registered = workspace.snapshot().views["shop_sales"]
    folder = workspace.root / "data" / "offline"
    files = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return (
        workspace.registry.definitions.head("shop"),
        read_watermark(workspace.ledger, registered),
        log_rows(workspace),
        online_rows(workspace),
        files,
    )


def wanted() -> ExpectedLog:
    log = ExpectedLog()
    log.read([*FIRST, *SECOND], day(0), NOW, NOW)
    return log


def good(path: Path) -> pa.Table:
    write_sales(path, SECOND)
    return pq.read_table(path)


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        pq.write_table(change(good(path)), path)

    return damage


def bytes_changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        pq.write_table(good(path), path, compression="zstd")
        path.write_bytes(change(path.read_bytes()))

    return damage


def replaced(name: str, values: Any) -> Callable[[Path], None]:
    return rewritten(lambda t: t.set_column(t.schema.get_field_index(name), name, pa.array(values)))


BAD: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "empty file": (lambda path: path.write_bytes(b"") and None, ["2.parquet", "0 bytes"]),
    "foreign file": (lambda path: path.write_text("shop,sold_at\na,1\n") and None, ["2.parquet", "magic bytes"]),
    "truncated": (bytes_changed(lambda content: content[: len(content) // 2]), ["2.parquet", "cannot be read"]),
    "damaged pages": (
        bytes_changed(lambda content: content[:4] + bytes(byte ^ 0xA5 for byte in content[4:90]) + content[90:]),
        ["2.parquet", "cannot be read"],
    ),
    "another type": (replaced("amount", ["1"] * 6), ["'amount'", "string in 2.parquet", "int64 in 1.parquet"]),
    "a key of another type": (replaced("shop", range(6)), ["'shop'", "int64 in 2.parquet"]),
    "time as text": (replaced("sold_at", ["2024-01-01"] * 6), ["'sold_at'", "string in 2.parquet"]),
    "columns that differ in case": (
        rewritten(lambda table: table.append_column("Amount", table["amount"])),
        ["'amount' and 'Amount' differ only in case"],
    ),
    "a column twice": (
        rewritten(lambda table: table.append_column("amount", table["amount"])),
        ["2.parquet: two columns are called 'amount'", "Rename one of them"],
    ),
    "a column twice that nobody reads": (
        rewritten(lambda table: table.append_column("n", table["amount"]).append_column("n", table["amount"])),
        ["2.parquet: two columns are called 'n'", "Rename one of them"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_among_good_ones_is_named_and_changes_nothing(
    workspace: Workspace, tmp_path: Path, case: str
) -> None:
    damage, words = BAD[case]
    before = state(workspace)
    damage(tmp_path / "sales" / "2.parquet")
    runs = [
        *materialize_incremental(workspace),
        *materialize(workspace, day(0), NOW),
        *materialize(workspace, day(0), NOW, rebuild=True, confirm=lambda *_: True),
        *materialize(workspace, day(0), NOW, dry_run=True),
    ]
    for run in runs:
        assert run.state == "failed"
        assert [word for word in words if word not in (run.error or "")] == [], run.error
    assert state(workspace) == before
    frame = pa.table({"shop": ["shop 1"], "event_timestamp": pa.array([NOW - 1], pa.timestamp("us", tz="UTC"))})
    for entity_df, direct in ((frame, True), ("SELECT shop, sold_at AS event_timestamp FROM sales", False)):
        with pytest.raises(SourceError) as caught:
            get_historical_features(workspace, entity_df, "shop_sales:amount", direct=direct).to_arrow()
        assert [word for word in words if word not in str(caught.value)] == []
    write_sales(tmp_path / "sales" / "2.parquet", SECOND)
    succeeded(materialize_incremental(workspace))
    assert log_rows(workspace) == wanted().rows
    assert online_rows(workspace) == expected_online(wanted(), NOW)


def test_a_fraction_where_an_integer_is_declared_is_named_and_changes_nothing(
    workspace: Workspace, tmp_path: Path
) -> None:
    before = state(workspace)
    replaced("amount", [1.5] * 6)(tmp_path / "sales" / "2.parquet")
    (run,) = materialize_incremental(workspace)
    assert run.state == "failed"
    assert "2.parquet holds 1.5, which is not a whole number" in (run.error or "")
    assert state(workspace) == before


@pytest.mark.parametrize("column", ["shop", "sold_at", "known_at", "amount"])
def test_a_column_that_is_gone_from_every_file_is_told_before_data_are_read(
    workspace: Workspace, tmp_path: Path, column: str
) -> None:
    path = tmp_path / "sales" / "1.parquet"
    before = state(workspace)
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([f"{name}s" if name == column else name for name in table.column_names]), path)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56  # had a row been read, the error would be another one
    path.write_bytes(content)
    (run,) = materialize_incremental(workspace)
    assert f"{column!r} is missing. Did you mean '{column}s'?" in (run.error or "")
    assert state(workspace) == before


def test_hung_redis_ends_a_run_within_its_deadline_and_the_next_completes(
    tmp_path: Path, redis_server: RedisServer, redis_url: str
) -> None:
    write_sales(tmp_path / "sales" / "1.parquet", [*FIRST, *SECOND])
    with FaultProxy(redis_server.port) as proxy:
        settings: Any = {"url": proxy.url, "write_timeout_ms": 300, "read_timeout_ms": 300}
        workspace = make_workspace(tmp_path, [sales_view(path="sales")], online_url=settings, now_us=NOW)
        proxy.fault = "hang"
        (run,) = materialize_incremental(workspace)
        assert run.state == "failed"
        assert "Redis" in (run.error or "")
        assert run.duration_ms is not None
        assert run.duration_ms < 20_000
        registered = workspace.snapshot().views["shop_sales"]
        assert read_watermark(workspace.ledger, registered).published_version is None
        assert log_rows(workspace) == wanted().rows

        proxy.fault = "none"
        (run,) = succeeded(materialize_incremental(workspace))
        assert (run.appended, run.published.written) == (0, 6)
        assert online_rows(workspace) == expected_online(wanted(), NOW)
        workspace.close()


def fill(folder: Path) -> Path:
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError:
                return path


MANY = [Sale(f"shop {number}", day(number % 19), day(19), number, os.urandom(20).hex()) for number in range(4000)]


@pytest.mark.parametrize("place", ["offline", "online", "registry"])
def test_a_full_disk_ends_a_run_with_its_name_and_the_next_completes(tmp_path: Path, place: str) -> None:
    write_sales(tmp_path / "sales" / "1.parquet", FIRST)
    folder = tmp_path / "data" if place == "registry" else tmp_path / "data" / place
    with small_disk(folder, size="2m") as is_small:
        workspace = opened(tmp_path)
        succeeded(materialize_incremental(workspace))
        before = log_rows(workspace), online_rows(workspace)
        write_sales(tmp_path / "sales" / "1.parquet", [*FIRST, *MANY])
        if is_small:
            filler = fill(folder)
            failed = attempt(lambda: materialize_incremental(workspace))
            assert any(word in failed for word in ("No space", "MiB left", "disk is full", "full")), failed
            if place != "online":
                assert log_rows(workspace) == before[0]
            assert {shop: online_rows(workspace)[shop] for shop in before[1]} == before[1]
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        succeeded(materialize_incremental(workspace))
        log = ExpectedLog()
        log.read([*FIRST, *MANY], day(0), NOW, NOW)
        assert sorted(log_rows(workspace)) == sorted(log.rows)
        assert online_rows(workspace) == expected_online(log, NOW)
        (run,) = succeeded(republish(workspace, authoritative=True))
        assert (run.published.repaired, run.published.deleted) == (0, 0)
        workspace.close()


def attempt(call: Callable[[], list[RunResult]]) -> str:
    """Return what a call that must fail says."""
    try:
        (run,) = call()
    except FeatureStoreError as error:
        return str(error)
    assert run.state == "failed"
    return run.error or ""
