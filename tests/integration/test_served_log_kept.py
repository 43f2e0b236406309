"""Files of the served log that are merged, forgotten and removed, while processes sleep, die, and disks fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine
from support.served import SECRET, ids_of, kept, logged_project
from support.serving import Project

from featurestore import FeatureStore
from featurestore.errors import DiskFullError, InputError, OfflineStoreError
from featurestore.ledger import leases
from featurestore.offline.local.blobs import FolderBlobs
from featurestore.served import files
from featurestore.served.forgetting import forget, only_part_of
from featurestore.served.hashing import LogKeys
from featurestore.served.joined import joined
from featurestore.served.keep import kept_logs, read_served
from featurestore.served.replacing import alone
from featurestore.served.retaining import check_files, retain


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-02-01T12:00:00Z")


@pytest.fixture
def project(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FS_SERVED__SECRET", SECRET["secret"])
    return logged_project(tmp_path / "repo", clock())


def folder_of(project: Project, service: str = "whole") -> Path:
    return project.root / "data/offline/shop" / f"_served.{service}"


def copied(project: Project, clock: ManualClock, days: float, count: int) -> list[int]:
    """Keep so many files of one day, of customers 0, 1, ..."""
    for number in range(count):
        kept(project, clock, "whole", days + number / 1_000, [number], number=number)
    return list(range(count))


def once_before(monkeypatch: pytest.MonkeyPatch, method: str, work: Callable[[], Any], *, within: str = "") -> None:
    """Do something before the first call of a method of blobs, as if the process was stopped there meanwhile."""
    usual, done = getattr(FolderBlobs, method), list[bool]()

    def delayed(self: FolderBlobs, *given: Any, **more: Any) -> Any:
        if not done and within in (given[0] if given else ""):
            done.append(True)
            work()
        return usual(self, *given, **more)

    monkeypatch.setattr(FolderBlobs, method, delayed)


@pytest.mark.parametrize("stopped_at", ["get", "put"])
@pytest.mark.parametrize("whole_file", [True, False], ids=["whole file", "part of a file"])
def test_who_slept_over_its_lease_brings_nothing_back(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, stopped_at: str, whole_file: bool
) -> None:
    """A merge stops after it has read, or right before it writes, until another took its lease and forgot."""
    copied(project, clock, 3, 8)
    kept(project, clock, "whole", 3.009, [8, 9] if not whole_file else [8], number=8)
    left = [each for each in ids_of(project, clock) if each != 8]
    monkeypatch.setattr(leases, "_LEASE_SECONDS", 0.2)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 1_000.0)
    monkeypatch.setattr(leases, "_is_gone", lambda process: False)
    told = list[int]()

    def forgotten() -> None:
        told.append(forget(project.workspace(clock), {"customer_id": 8}).rows)

    # The last file that the merge reads is the newest one.
    last = sorted(folder_of(project).glob("*.parquet"))[-1].name
    once_before(monkeypatch, stopped_at, forgotten, within=last if stopped_at == "get" else "-m")
    found = retain(project.workspace(clock))
    assert told == [1]
    assert "lost its lease" in " ".join(found.problems)
    assert sorted(ids_of(project, clock)) == sorted(left)
    newest_us = int(last.partition("-")[0])  # of a span in which nothing was forgotten
    assert read_served(project.workspace(clock), "whole", newest_us, newest_us + 1).num_rows == 1
    assert retain(project.workspace(clock)).problems == ()
    assert sorted(ids_of(project, clock)) == sorted(left)
    assert len(files.files_of(project.workspace(clock).offline.blobs("shop", "served.whole"))) == 1


def test_a_forget_that_was_cut_off_stays_done_past_the_retention(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(project, clock, "whole", 29, [1, 2])
    (original,) = folder_of(project).glob("*.parquet")
    content = original.read_bytes()
    forget(project.workspace(clock), {"customer_id": 1})
    original.write_bytes(content)  # it died before it deleted this one
    assert ids_of(project, clock) == [2]
    clock.now_us += 2 * 86_400_000_000
    assert retain(project.workspace(clock)).removed == 1
    assert ids_of(project, clock) == []


def test_a_file_goes_once_its_last_row_is_older_than_the_retention(project: Project, clock: ManualClock) -> None:
    kept(project, clock, "whole", 29, [1])
    (file,) = files.files_of(project.workspace(clock).offline.blobs("shop", "served.whole"))
    clock.now_us = file.last_us + 30 * 86_400_000_000
    assert retain(project.workspace(clock)).removed == 0
    clock.now_us += 1
    assert retain(project.workspace(clock)).removed == 1


def test_what_a_span_does_not_show_is_forgotten_there_all_the_same(project: Project, clock: ManualClock) -> None:
    """The rows that stay are of another part of the span than those that are asked for."""
    kept(project, clock, "whole", 3.0, [1], number=0)
    kept(project, clock, "whole", 2.9, [2], number=1)
    workspace = project.workspace(clock)
    blobs = workspace.offline.blobs("shop", "served.whole")
    both = files.files_of(blobs)
    tables = [files.read(files.SERVED, blobs, file, "whole") for file in both]
    with alone(workspace, "whole") as lease:
        one = joined(files.SERVED, [table for table, _ in tables], tables[0][0].schema)
        lease.replace(files.SERVED, blobs, both, one, tables[0][1])
    (merged,) = files.files_of(blobs)
    content = blobs.get(merged.name, "")
    forget(workspace, {"customer_id": 1})
    blobs.put(merged.name, content, "")
    early = merged.first_us
    assert read_served(workspace, "whole", early, early + 1).num_rows == 0


def test_files_that_were_cut_off_go(project: Project, clock: ManualClock) -> None:
    kept(project, clock, "whole", 1, [1])
    partial = folder_of(project) / "1-2-a-1.parquet.0123-partial"
    for age_s, stays in ((60, True), (3_600, False)):
        partial.write_bytes(b"PAR1")
        os.utime(partial, (clock() / 1e6 - age_s,) * 2)
        retain(project.workspace(clock))
        assert partial.exists() == stays
    partial.write_bytes(b"PAR1")
    os.utime(partial, (clock() / 1e6 - 3_600,) * 2)
    forget(project.workspace(clock), {"customer_id": 7})
    assert not partial.exists()


def test_a_damaged_file_is_named_and_the_rest_is_done(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(project, clock, 3, 9)
    kept(project, clock, "whole", 40, [77])
    damaged = sorted(folder_of(project).glob("*.parquet"))[4]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    fs = CommandLine(project.root, capsys)
    workspace = project.workspace(clock)
    found = retain(workspace)
    assert found.removed == 1
    assert [damaged.name in problem for problem in found.problems] == [True]
    assert len(list(folder_of(project).glob("*.parquet"))) == 2  # the damaged one, and the others as one
    fs("verify", expect=1)
    assert damaged.name in fs.out
    assert "delete the file: the log then lacks its rows" in " ".join(fs.out.split())
    forgotten = forget(workspace, {"customer_id": 1})
    assert forgotten.rows == 1
    assert [damaged.name in problem for problem in forgotten.problems] == [True]
    document = fs.json("served", "forget", "--entity", "customer_id=2", expect=1)
    assert (document["rows"], len(document["problems"])) == (1, 1)
    damaged.unlink()
    assert len(ids_of(project, clock)) == 6
    fs("verify")


def test_gc_names_a_damaged_file_of_a_service_that_is_gone(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(project, clock, "whole", 1, [1])
    (damaged,) = folder_of(project).glob("*.parquet")
    damaged.write_bytes(b"PAR1")
    project.apply(without=["feature_service:whole"])
    fs = CommandLine(project.root, capsys)
    assert damaged.name in fs("gc", expect=1)
    assert "online keys removed" in fs.out
    assert fs.json("gc", expect=1)["served_problems"]


def test_gc_frees_space_before_it_merges(project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(project, clock, 3, 9)
    kept(project, clock, "private", 5, [1])

    def full(self: FolderBlobs, name: str, content: bytes, what: str) -> None:
        raise DiskFullError(f"No space was left on the disk to keep {what}.")

    monkeypatch.setattr(FolderBlobs, "put", full)
    found = retain(project.workspace(clock))
    assert found.removed == 1
    assert ["were not merged: No space" in problem for problem in found.problems] == [True]
    assert len(ids_of(project, clock)) == 9


def test_reading_while_files_are_merged_shows_each_row_once(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(project, clock, 3, 9)
    last = sorted(folder_of(project).glob("*.parquet"))[-1].name
    once_before(monkeypatch, "get", lambda: retain(project.workspace(clock)), within=last)
    assert sorted(ids_of(project, clock)) == list(range(9))


def test_what_is_merged_while_it_is_checked_is_not_damaged(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(project, clock, 3, 9)
    last = sorted(folder_of(project).glob("*.parquet"))[-1].name
    once_before(monkeypatch, "get", lambda: retain(project.workspace(clock)), within=last)
    (found,) = (each for each in check_files(project.workspace(clock)) if each.what == "the served log of whole")
    assert (found.files, found.problems) == (9, ())


def test_requests_without_rows_clocks_before_1970_and_foreign_names_do_no_harm(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(project, clock, "whole", 1, [])
    assert not list(folder_of(project).glob("*"))
    kept(project, ManualClock("1969-12-31T12:00:00Z"), "whole", 0, [1])
    with FeatureStore(project.root, clock=clock) as store:
        assert store.read_served("whole").num_rows == 1
    (file,) = folder_of(project).glob("*.parquet")
    shutil.copy(file, folder_of(project) / f"9999999999999999999-9999999999999999999-a-1.{'0' * 64}.parquet")
    assert "1969-12-31" in CommandLine(project.root, capsys)("served", "list")
    assert kept_logs(project.workspace(clock))[0].service == "logged"
    assert retain(project.workspace(clock)).removed == 1


def test_a_clock_that_is_ahead_hides_nothing(project: Project, clock: ManualClock, tmp_path: Path) -> None:
    kept(project, clock, "whole", -1, [1])
    with FeatureStore(project.root, clock=clock) as store:
        assert store.read_served("whole").num_rows == 1
        assert store.read_served("whole", end="2024-02-01").num_rows == 0


def test_a_file_of_a_later_release_asks_for_an_upgrade(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FORMAT", 2)
    kept(project, clock, "whole", 1, [1])
    monkeypatch.setattr(files, "FORMAT", 1)
    with pytest.raises(OfflineStoreError, match="has format 2: a later release") as told:
        ids_of(project, clock)
    assert "Upgrade" in told.value.hint


def test_a_secret_that_was_changed_is_named_and_others_are_forgotten(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(project, clock, "whole", 2, [1, 2])
    kept(project, clock, "private", 1, [1, 2])
    first = ids_of(project, clock, "private")
    (lost,) = folder_of(project, "private").glob("*.parquet")
    monkeypatch.setenv("FS_SERVED__SECRET", "another one that nobody guesses")
    kept(project, clock, "private", 0.5, [1, 2])
    fs = CommandLine(project.root, capsys)
    told = " ".join(fs("served", "forget", "--entity", "customer_id=1", expect=1).split())
    assert "2 rows are forgotten, in 2 files" in told
    assert lost.name in told
    assert "earlier_secrets" in told
    assert ids_of(project, clock) == [2]
    assert len(ids_of(project, clock, "private")) == 3
    monkeypatch.setenv("FS_SERVED__EARLIER_SECRETS", f'["short", "{SECRET["secret"]}"]')
    assert "1 rows are forgotten, in 1 files" in fs("served", "forget", "--entity", "customer_id=1")
    assert ids_of(project, clock, "private")[0] == first[1]


def test_keys_of_earlier_releases_are_found(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = LogKeys(SECRET["secret"])
    first = next(each for each in [keys.of("8d4c3f3a"), keys.of(old_id(SECRET["secret"]))] if each is not None)
    monkeypatch.setattr(LogKeys, "own", first)
    kept(project, clock, "private", 1, [1, 2])
    monkeypatch.undo()
    monkeypatch.setenv("FS_SERVED__SECRET", SECRET["secret"])
    rows = read_served(project.workspace(clock), "private", 0, clock())
    assert set(rows.column("key_id").to_pylist()) == {old_id(SECRET["secret"])}
    assert forget(project.workspace(clock), {"customer_id": 1}).rows == 1


def old_id(secret: str) -> str:
    """As the first form makes it."""
    from hashlib import blake2b

    return blake2b(blake2b(secret.encode(), digest_size=32).digest(), digest_size=4, person=b"fs key id").hexdigest()


def test_an_entity_that_nothing_declares_any_more_is_forgotten(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(project, clock, "whole", 1, [1, 22])
    kept(project, clock, "private", 1, [1, 22])
    text = (project.root / "features.py").read_text().replace("customer_id", "buyer")
    (project.root / "features.py").write_text(text)
    project.apply()
    fs = CommandLine(project.root, capsys)
    fs("served", "forget", "--entity", "customer=1", expect=1)
    assert "Did you mean 'customer_id'?" in fs.err
    fs("served", "forget", "--entity", "customer_id=x", expect=1)
    assert "'x'" in fs.err
    assert "2 rows are forgotten, in 2 files" in fs("served", "forget", "--entity", "customer_id=22", "--yes")


def test_what_is_only_part_of_a_key_is_told_also_where_it_is_another_whole_key(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: taxi\n")
    (tmp_path / "features.py").write_text(
        "from featurestore import *\nfrom featurestore.types import Float64, String\n"
        "airport = Entity('airport', join_keys={'origin': String})\n"
        "route = Entity('route', join_keys={'origin': String, 'dest': String})\n"
        "person = Entity('person', join_keys={'person_id': String})\n"
        "trips = ParquetSource('trips', 'trips.parquet', 'at')\n"
        "of_two = FeatureView('of_two', entities=[airport, person], source=trips, schema=[Field('a', Float64)])\n"
        "of_route = FeatureView('of_route', entities=[route], source=trips, schema=[Field('b', Float64)])\n"
        "renamed = of_route.with_join_keys({'origin': 'home', 'dest': 'far'})\n"
        "service = FeatureService('service', features=[of_two, renamed])\n"
    )
    columns = {key: ["x"] for key in ("origin", "dest", "person_id")} | {"a": [1.0], "b": [1.0]}
    rows = pa.table({**columns, "at": pa.array([0], pa.timestamp("us", "UTC"))})
    pq.write_table(rows, tmp_path / "trips.parquet")
    with FeatureStore(tmp_path) as store:
        store.apply()
        route, renamed = "route (origin, dest)", "route (home, far)"
        for given, told in (
            ("origin", [route]),
            ("dest", [route]),
            ("origin dest", []),
            ("person_id", []),
            ("person_id origin", [route]),
            ("home", [renamed]),
            ("home far", []),
            ("gone", ["what nothing declares (gone)"]),
        ):
            assert only_part_of(store.workspace, dict.fromkeys(given.split(), "x")) == told, given


def test_part_of_a_key_is_asked_about(project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]) -> None:
    from support.served import ask
    from support.serving import serving_here

    with serving_here(project.workspace(ManualClock(clock() - 3_600_000_000))) as client:
        entities = {"customer_id": [1, 2, 3], "origin": ["JFK", "JFK", "BOS"], "dest": ["LAX", "SFO", "LAX"]}
        ask(client, "logged", entities, "r", request_data={"amount": [1.0, 2.0, 3.0]})
    fs = CommandLine(project.root, capsys)
    for command in (["served"], ["quarantine"]):
        fs(*command, "forget", "--entity", "origin=JFK", expect=2)
        assert "origin is only part of the key of route (origin, dest):" in " ".join(fs.err.split())
        assert "pass --yes" in fs.err
    assert fs.json("served", "forget", "--entity", "origin=JFK", "--dry-run")["rows"] == 2
    assert fs.json("served", "forget", "--entity", "origin=JFK", "--entity", "dest=LAX")["rows"] == 1
    assert fs.json("served", "forget", "--entity", "origin=JFK", "--yes")["rows"] == 1
    with pytest.raises(InputError, match="'orgin' is not a join key"):
        forget(project.workspace(clock), {"orgin": "JFK"})
