"""A log that lacks an entry, or holds a damaged one: told by table and version, and what is said helps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import DeltaError

from featurestore import FeatureStore
from featurestore.cli.main import main
from featurestore.errors import FeatureStoreError, OfflineStoreError
from featurestore.maintenance.doctor import examine
from featurestore.maintenance.status import status
from featurestore.maintenance.verify import verify
from featurestore.offline.interface import TableId
from featurestore.offline.local import store as delta
from featurestore.offline.local.delta_log import TableLog

FEATURES = """
from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Int64, String

carrier = Entity("carrier", {"carrier": String})
flights = PushSource("flights", batch_source=ParquetSource("batch", "flights.parquet", "at"))
delays = FeatureView("delays", entities=[carrier], source=flights, schema=[Field("delay", Int64)])
"""
CHECKPOINT_EVERY = 5
LAST = CHECKPOINT_EVERY + 3


def rows(delay: int) -> pa.Table:
    at = pa.array([delay * 1_000_000], pa.timestamp("us", tz="UTC"))
    return pa.table({"carrier": ["UA"], "at": at, "delay": [delay]})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose table has a checkpoint in the middle of its log, and a row for each version."""
    root = tmp_path_factory.mktemp("whole")
    (root / "feature_store.yaml").write_text("project: shop\n")
    (root / "features.py").write_text(FEATURES)
    pq.write_table(rows(0), root / "flights.parquet")
    with FeatureStore(root) as store, pytest.MonkeyPatch.context() as patched:
        patched.setattr(delta, "CHECKPOINT_EVERY", CHECKPOINT_EVERY)
        store.apply()
        store.materialize_incremental()
        for number in range(1, LAST + 1):
            store.push("flights", rows(number))
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "repo"))


def log_of(root: Path) -> Path:
    return root / "data" / "offline" / "shop" / "delays" / "1" / "_delta_log"


def entry(log: Path, number: int) -> Path:
    return log / f"{number:020}.json"


def checkpoint(log: Path) -> Path:
    return log / f"{CHECKPOINT_EVERY:020}.checkpoint.parquet"


def read(store: FeatureStore) -> list[int]:
    """Return every value of the table, in order."""
    span = {"start": datetime(1970, 1, 1, tzinfo=UTC), "end": datetime(1971, 1, 1, tzinfo=UTC)}
    return sorted(store.get_historical_features(features=["delays:delay"], **span).to_arrow()["delay"].to_pylist())


def first_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MIDDLE = LAST - 1
Break = Callable[[Path], object]
FAULTS: dict[str, tuple[Break, str, int]] = {
    "missing": (lambda log: entry(log, MIDDLE).unlink(), f"version {MIDDLE} (missing)", MIDDLE),
    "two missing": (
        lambda log: [entry(log, number).unlink() for number in (MIDDLE - 1, MIDDLE)],
        f"version {MIDDLE - 1} (missing), version {MIDDLE} (missing)",
        MIDDLE - 1,
    ),
    "empty": (lambda log: entry(log, MIDDLE).write_bytes(b""), f"version {MIDDLE} (empty)", MIDDLE),
    "empty newest": (lambda log: entry(log, LAST).write_bytes(b""), f"version {LAST} (empty)", LAST),
    "a line end": (lambda log: entry(log, MIDDLE).write_bytes(b"\n"), f"version {MIDDLE} (empty)", MIDDLE),
    "truncated": (lambda log: first_half(entry(log, MIDDLE)), f"version {MIDDLE} (damaged)", MIDDLE),
    "zeros": (lambda log: entry(log, MIDDLE).write_bytes(bytes(900)), f"version {MIDDLE} (damaged)", MIDDLE),
    "no UTF-8": (lambda log: entry(log, MIDDLE).write_bytes(b"\xff" * 900), f"version {MIDDLE} (damaged)", MIDDLE),
    "other JSON": (lambda log: entry(log, MIDDLE).write_bytes(b"[1]"), f"version {MIDDLE} (damaged)", MIDDLE),
    "before a checkpoint that is gone": (
        lambda log: [checkpoint(log).unlink(), entry(log, 3).unlink()],
        "version 3 (missing)",
        3,
    ),
    "before a checkpoint that is damaged": (
        lambda log: [first_half(checkpoint(log)), entry(log, 3).unlink()],
        "version 3 (missing)",
        3,
    ),
}


@pytest.mark.counted_once
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hole_in_the_log_is_told_and_what_is_said_brings_the_table_back(root: Path, fault: str) -> None:
    damage, words, first = FAULTS[fault]
    log = log_of(root)
    damage(log)
    for use in (read, lambda store: store.push("flights", rows(99)), FeatureStore.materialize_incremental):
        with FeatureStore(root) as store, pytest.raises(FeatureStoreError) as raised:
            use(store)
        said = str(raised.value)
        assert "Table shop/delays/1 cannot be read: its log lacks the entry of " in said
        assert words in said
        assert f"Bring back {first:020}.json" in said
        behind = f" and what follows it, up to {LAST:020}.json," if first < LAST else ""
        assert f"move {first:020}.json{behind} elsewhere" in said
        assert str(log) in said
        assert "ParsedLogPath" not in said
    with FeatureStore(root) as store:
        assert words in status(store.workspace)[0].unreadable
        assert any(words in problem for found in verify(store.workspace) for problem in found.problems)
        (check,) = [check for check in examine(store.workspace) if check.name == "table shop/delays/1"]
        assert check.state == "failed"
        assert words in check.message
        # The words of the hint: what follows the last good entry goes elsewhere, then a repair.
        for number in range(first, LAST + 1):
            entry(log, number).unlink(missing_ok=True)
        for path in (checkpoint(log), log / "_last_checkpoint"):
            if first < CHECKPOINT_EVERY:
                path.unlink(missing_ok=True)
    with pytest.raises(SystemExit) as ended:
        main(["repair", "--yes", "--repo", str(root)])
    assert ended.value.code == 0
    with FeatureStore(root) as store:
        assert read(store) == list(range(first))


@pytest.mark.parametrize("written", [b"", b'{"add"'])
def test_an_entry_that_another_writer_has_only_begun_is_none(
    root: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`deltalake` writes it beside its name, then links it: what a reader meets there is neither empty nor damaged."""
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 1)
    log = log_of(root)
    begun = log / f"{LAST + 1:020}.json#1"
    begun.write_bytes(written)
    with FeatureStore(root) as store:
        assert read(store) == list(range(LAST + 1))
        store.push("flights", rows(LAST + 1))
        store.push("flights", rows(LAST + 2))
        assert read(store) == list(range(LAST + 3))
        assert [problem for found in verify(store.workspace) for problem in found.problems] == []
    assert begun.read_bytes() == written


def test_peek_tells_a_damaged_log_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without the entry of the run the table is another one, too, as far as it can be read."""
    log = log_of(root)
    checkpoint(log).unlink()
    entry(log, 0).write_bytes(b"")
    with FeatureStore(root) as store, pytest.raises(OfflineStoreError, match=r"version 0 \(empty\)"):
        store.peek("delays")
    assert caplog.messages == []  # the error says it all


@pytest.mark.parametrize("before_checkpoint", [True, False])
def test_a_version_whose_files_are_gone_is_not_promised_and_what_is_said_helps(
    root: Path, before_checkpoint: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a merge and `fs gc`, where the log then loses the entries that merged."""
    log = log_of(root)
    first, gone = (3, 2) if before_checkpoint else (MIDDLE, 2)
    actions = [json.loads(line) for line in entry(log, gone).read_text().splitlines()]
    (added,) = [action["add"]["path"] for action in actions if "add" in action]
    entry(log, first).unlink()
    if before_checkpoint:
        checkpoint(log).unlink()
        (log / "_last_checkpoint").unlink()
    with FeatureStore(root) as store:
        with pytest.raises(OfflineStoreError) as raised:
            read(store)
        assert "--rebuild" not in str(raised.value)  # the version's files are there
        (log.parent / added).unlink()
        with pytest.raises(OfflineStoreError) as raised:
            read(store)
    said = str(raised.value)
    assert f"the table ends with version {first - 1} then, but files of that version are gone, too. Run" in said
    assert "`fs materialize START END --view delays --rebuild` that it names" in said
    for number in range(first, LAST + 1):
        entry(log, number).unlink(missing_ok=True)
    with pytest.raises(SystemExit) as ended:
        main(["repair", "--yes", "--repo", str(root)])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert re.findall(r"^view    run                  read", out, re.MULTILINE)  # as wide as short words make it
    assert "delays  interval, failed " in out
    (command,) = set(re.findall(r"`fs (materialize \S+ \S+ --view delays --rebuild)`", err))
    for arguments in (command.split(), ["repair"]):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--yes", "--repo", str(root)])
        assert ended.value.code == 0
    with FeatureStore(root) as store:
        assert read(store) == [number for number in range(first) if number != gone]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_lost_checkpoint_is_told_and_deleting_what_names_it_helps(root: Path, is_damaged: bool) -> None:
    log = log_of(root)
    damage = first_half if is_damaged else Path.unlink
    damage(checkpoint(log))
    with FeatureStore(root) as store:
        with pytest.raises(OfflineStoreError, match=f"the checkpoint of version {CHECKPOINT_EVERY} ") as raised:
            read(store)
        names = f"_last_checkpoint and {checkpoint(log).name}" if is_damaged else "_last_checkpoint"
        assert f"delete {names} in {log}" in str(raised.value)
        (log / "_last_checkpoint").unlink()
        checkpoint(log).unlink(missing_ok=True)
        assert read(store) == list(range(LAST + 1))


@pytest.mark.parametrize("content", [b"", b"{nonsense", b"[]", b'{"version": 3, "size": 3}', b'{"version": "x"}'])
def test_what_the_log_says_of_its_checkpoint_is_not_needed(root: Path, content: bytes) -> None:
    (log_of(root) / "_last_checkpoint").write_bytes(content)
    with FeatureStore(root) as store:
        assert read(store) == list(range(LAST + 1))


def test_a_log_without_its_beginning_is_read_from_the_source_again(root: Path) -> None:
    log = log_of(root)
    checkpoint(log).unlink()
    entry(log, 0).unlink()
    with FeatureStore(root) as store, pytest.raises(OfflineStoreError, match=r"version 0 \(missing\)") as raised:
        read(store)
    assert f"or {checkpoint(log).name}, into" in str(raised.value)
    assert f"move the folder {log.parent} elsewhere" in str(raised.value)
    log.parent.rename(root / "elsewhere")
    with pytest.raises(SystemExit) as ended:
        main(["repair", "--yes", "--repo", str(root)])
    assert ended.value.code == 0
    with FeatureStore(root) as store:
        assert read(store) == [0]


def garble(path: Path) -> None:
    path.write_bytes(b"garbage\n")


@pytest.mark.counted_once
@pytest.mark.parametrize("number", [MIDDLE, LAST])
@pytest.mark.parametrize("damage", [garble, first_half, lambda path: path.write_bytes(b"")])
def test_a_repair_and_a_run_tell_of_the_damage_first_and_change_nothing(
    root: Path, number: int, damage: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    path = entry(log_of(root), number)
    whole = path.read_bytes()
    damage(path)
    commands = (["repair", "--dry-run"], ["repair", "--yes"], ["materialize"], ["materialize", "--republish"])
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([*command, "--repo", str(root)])
        out, err = capsys.readouterr()
        said = " ".join((out + err).split())
        assert ended.value.code == 1
        assert "Table shop/delays/1 cannot be read: its log lacks the entry of " in said, command
        assert f"version {number} (" in said
        assert "->" not in said, "nothing is promised"
        for other in ("does not have", "was cut off", "newer backup", "restored and written"):
            assert other not in said, command
    with FeatureStore(root) as store, pytest.raises(OfflineStoreError, match="its log lacks the entry of "):
        read(store)
    path.write_bytes(whole)
    with FeatureStore(root) as store:
        assert [check.message for check in examine(store.workspace) if check.state == "failed"] == []
        assert status(store.workspace)[0].mismatches == ()
        store.materialize_incremental()
        assert read(store) == list(range(LAST + 1))


def test_of_what_the_library_says_its_own_structures_are_left_out(root: Path) -> None:
    log = TableLog(TableId("shop", "delays", 1), log_of(root).parent)
    said = "Kernel error: no entry of version 3 [ParsedLogPath { location: FileMeta { location: Url { scheme"
    with pytest.raises(OfflineStoreError) as raised, log._translated():
        raise DeltaError(said)
    assert raised.value.message == "Table shop/delays/1: Kernel error: no entry of version 3 ["
