"""The journal's entries: what became known and was published when, though logs are cleaned and registries away."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from featurestore_registry.interface import Journal
from featurestore_registry.sql import upgrade_registry
from support.clock import ManualClock
from support.command_line import CommandLine
from support.crash_scenario import Job, open_workspace, run_here, run_in_a_process
from support.materialized import Sale, day, sales_view, write_sales
from support.projects import apply_records
from support.serving import until

from featurestore.errors import AuthError, RegistryUnavailableError
from featurestore.ingest import noting, push
from featurestore.ingest.noting import notes_of
from featurestore.ledger import journal as journals
from featurestore.ledger.journal import (
    KINDS,
    PUBLISH,
    PUSHED_ONLINE,
    JournaledCommit,
    catch_up,
    commits_of,
    newest_events,
)
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.maintenance.teardown import drop_data
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.offline import groups
from featurestore.offline.local import archive
from featurestore.offline.local import store as delta
from featurestore.online.records.codec import is_record
from featurestore.plan.applying import apply_plan
from featurestore.plan.planning import make_plan
from featurestore.project.loader import collect
from featurestore.project.settings import make_settings
from featurestore.store import FeatureStore
from featurestore.workspace import Workspace

Open = Callable[..., Workspace]
NOW = day(20)
SALES = [Sale(f"shop {number % 4}", day(number), day(number), number) for number in range(10)]
VIEW, KEY = "shop_sales", "shop_sales.1"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(noting, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(noting, "PAUSE_SECONDS", 0.02)


def opened(folder: Path, registry: str | None = None, **settings: Any) -> Workspace:
    document = {"project": "shop", "registry": registry or "sqlite:///data/registry.db", **settings}
    return Workspace(folder, make_settings(document), clock=ManualClock(NOW))


@pytest.fixture(params=["sqlite", "postgres"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the project once more."""
    return partial(opened, tmp_path, None if request.param == "sqlite" else request.getfixturevalue("postgres_url"))


@pytest.fixture
def workspace(again: Open, tmp_path: Path) -> Iterator[Workspace]:
    with closing(again()) as workspace:
        write_sales(tmp_path / "sales.parquet", SALES)
        apply_records(workspace, collect([sales_view(pushed=True)]))
        yield workspace


def told(workspace: Workspace) -> list[JournaledCommit]:
    return list(commits_of(workspace.registry.journal, workspace.snapshot().registered(VIEW)))


def documents(workspace: Workspace, kind: str, key: str = KEY) -> list[Mapping[str, Any]]:
    return [entry.document for entry in workspace.registry.journal.scan("shop", kind, key=key)]


def in_log(workspace: Workspace) -> list[tuple[int, str]]:
    table = workspace.snapshot().registered(VIEW).table
    last = workspace.offline.find_commit(table)
    found = [workspace.offline.find_commit(table, number) for number in range(0 if last is None else last.number + 1)]
    return [(commit.number, commit.identity) for commit in found if commit is not None]


def identities(commits: Sequence[JournaledCommit]) -> list[tuple[int, str]]:
    return [(commit.version, commit.identity) for commit in commits]


def push_one(workspace: Workspace, amount: int, to: Any = "both", shop: str = "shop 1") -> None:
    row = {"shop": [shop], "sold_at": [day(19)], "known_at": [day(19)], "amount": [amount], "note": [None]}
    instants = {name: [value / 1e6 for value in row[name]] for name in ("sold_at", "known_at")}
    push(workspace, "sales_push", row | {n: pd.to_datetime(v, unit="s", utc=True) for n, v in instants.items()}, to)


def test_a_views_life_is_in_the_journal_and_outlasts_its_log(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 1)
    for name, value in (("KEPT_CHECKPOINTS", 1), ("SETTLED_SECONDS", 0.0)):
        monkeypatch.setattr(archive, name, value)
    succeeded(materialize_incremental(workspace, day(5)))
    workspace.clock.advance(timedelta(days=1))
    for amount in range(3):
        push_one(workspace, amount)
    until(lambda: len(told(workspace)) == 4)  # nobody waited for it
    write_sales(workspace.root / "sales.parquet", SALES[2:])
    succeeded(materialize(workspace, day(0), day(10), rebuild=True, confirm=lambda view, rows: rows == 2))
    succeeded(republish(workspace, authoritative=True))
    found = told(workspace)
    assert identities(found) == in_log(workspace)
    assert [commit.after for commit in found] == [None, *(commit.identity for commit in found[:-1])]
    counted = [(c.origin, c.rows, c.first_sequence, c.last_sequence) for c in found[:5]]
    pushes = [("push", 1, number, number) for number in (5, 6, 7)]
    assert counted == [("run", 5, 0, 4), *pushes, ("run", 5, 11, 15)]
    assert [commit.at_us for commit in found[:2]] == [NOW, NOW + 86_400_000_000]
    withdrawal = found[4]
    assert [commit.withdrawn for commit in found] == [0, 0, 0, 0, 2, *([0] * len(found[5:]))]
    assert withdrawal.rebuilt == (day(0), day(10))
    begun, ended = (
        [each for each in documents(workspace, PUBLISH) if ("finished_us" in each) == is_ended]
        for is_ended in (False, True)
    )
    assert [each["publish"] for each in begun] == [each["publish"] for each in ended]
    assert all(each["complete"] for each in ended)
    first, *_, last = ended
    assert (first["from"], first["to"]["identity"], first["written"]) == (None, found[0].identity, 4)
    assert (last["republish"], last["authoritative"]) == (True, True)
    assert withdrawal.run in {each["run"] for each in ended}

    optimize(workspace)
    collect_garbage(workspace)
    succeeded(materialize_incremental(workspace))
    assert len(in_log(workspace)) < len(found)  # its earliest entries are gone
    assert told(workspace)[: len(found)] == found
    assert identities(told(workspace))[-len(in_log(workspace)) :] == in_log(workspace)


def test_two_who_catch_up_at_once_leave_nothing_out_and_nothing_twice(
    workspace: Workspace, again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeded(materialize_incremental(workspace, day(5)))
    table = workspace.snapshot().registered(VIEW).table
    for amount in range(12):
        push_one(workspace, amount, "offline")
    notes_of(workspace).close()
    barrier = threading.Barrier(4)

    def work(most: int) -> None:
        with closing(again()) as own:
            barrier.wait()
            catch_up(own, [table], most=most)

    threads = [threading.Thread(target=work, args=[most]) for most in (1, 2, 5, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(13):
        catch_up(workspace, [table], most=1)
    assert identities(told(workspace)) == in_log(workspace)
    count = len(documents(workspace, "commit"))
    catch_up(workspace, [table])
    assert len(documents(workspace, "commit")) == count
    workspace.registry.journal.append("shop", "commit", [(KEY, documents(workspace, "commit")[0])])  # by one that slept
    for name, value in (("PER_ENTRY", 5), ("PER_CALL", 6)):
        monkeypatch.setattr(journals, name, value)
    sent, append = list[int](), type(workspace.registry.journal).append
    with monkeypatch.context() as patch:
        patch.setattr(
            type(workspace.registry.journal), "append", lambda *given: sent.append(len(given[-1])) or append(*given)
        )
        catch_up(workspace, [table])
    assert max(sent) == 1
    sizes = [len(document["commits"]) for document in documents(workspace, "commit")[count + 1 :]]
    assert sum(sizes) == len(in_log(workspace)) - 1
    assert max(sizes) == 5
    assert identities(told(workspace)) == in_log(workspace)


def test_a_table_that_was_restored_tells_its_other_history(workspace: Workspace, again: Open) -> None:
    succeeded(materialize_incremental(workspace, day(5)))
    folder, table = workspace.root / "data/offline", workspace.snapshot().registered(VIEW).table
    push_one(workspace, 1, "offline")
    shutil.copytree(folder, workspace.root / "kept")
    lost = [push_one(workspace, 100 + number, "offline") or in_log(workspace)[-1] for number in range(3)]
    catch_up(workspace, [table])
    workspace.close()
    shutil.rmtree(folder)
    (workspace.root / "kept").rename(folder)
    with closing(again()) as restored:
        begin = in_log(restored)
        catch_up(restored, [table])
        assert identities(told(restored)) == [*begin, *lost]
        schema = restored.snapshot().registered(VIEW).table_schema
        restored.offline.commit(table, schema, base=begin[-1][0], add=[])
        catch_up(restored, [table])
        assert identities(told(restored)) == [*begin, *lost, in_log(restored)[-1]]
        assert told(restored)[-1].after == begin[-1][1] != lost[-1][1]


def test_what_a_killed_run_committed_is_journaled_by_the_next(tmp_path: Path) -> None:
    run_here(Job("apply_first", str(tmp_path), None))
    for point in ("commit.remembered:2", "publish.schema"):  # in the second view, and before anything is online
        killed = Job("first_run", str(tmp_path), None, crash_at=point)
        assert run_in_a_process(killed)[0] == 137
        with closing(open_workspace(tmp_path, None)) as workspace:
            assert told(workspace) == []
            assert len(in_log(workspace)) == 1
    with closing(open_workspace(tmp_path, None)) as workspace:
        (dead,) = documents(workspace, PUBLISH)
        assert "finished_us" not in dead
        succeeded(materialize_incremental(workspace, day(10)))
        assert identities(told(workspace)) == in_log(workspace)
        _, begun, ended = documents(workspace, PUBLISH)
        assert begun["publish"] == ended["publish"] != dead["publish"]
        assert ended["to"] == dead["to"]
        assert identities(told(workspace)) == in_log(workspace)


def test_pushes_go_on_while_the_registry_is_away(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    succeeded(materialize_incremental(workspace))
    tries: list[Any] = []
    append = type(workspace.registry.journal).append

    answered = threading.Event()

    def away(journal: Journal, project: str, kind: str, *arguments: Any) -> list[int]:
        tries.append(kind)
        answered.wait(10)
        raise RegistryUnavailableError("It is away.")

    monkeypatch.setattr(type(workspace.registry.journal), "append", away)
    monkeypatch.setattr(noting, "MOST_WAITING", 5)
    for number in range(5):
        push_one(workspace, number, "online", f"shop {number}")
    until(lambda: PUSHED_ONLINE in tries)
    push_one(workspace, 8, "online", "one too many")
    push_one(workspace, 7, shop="shop 9")
    answered.set()
    until(lambda: len(tries) > 2)
    assert documents(workspace, PUSHED_ONLINE, VIEW) == []
    monkeypatch.setattr(type(workspace.registry.journal), "append", append)
    until(lambda: identities(told(workspace)) == in_log(workspace))
    found = documents(workspace, PUSHED_ONLINE, VIEW)
    assert sum(each["rows"] for each in found) == 5
    assert sum(each["dropped"] for each in found) == 1
    assert "1 records pushed online only are not in the journal" in caplog.text
    pairs = (pair for batch in workspace.online.scan(b"fs:shop:shop_sales") for pair in batch)
    records = [value for key, value in pairs if is_record(value) and b"one too many" not in key]
    noted = b"".join(b64decode(each["crcs"]) for each in found)
    assert {noted[at : at + 4] for at in range(0, 20, 4)} <= {record[-4:] for record in records}
    assert len(noted) == 20

    def cut(*arguments: Any) -> list[int]:
        monkeypatch.setattr(type(workspace.registry.journal), "append", append)
        append(*arguments)
        raise RegistryUnavailableError("It was cut.")

    monkeypatch.setattr(type(workspace.registry.journal), "append", cut)
    push_one(workspace, 9, "online", "shop 7")
    count = len(documents(workspace, PUSHED_ONLINE, VIEW))
    until(lambda: len(documents(workspace, PUSHED_ONLINE, VIEW)) == count + 2)
    first, second = documents(workspace, PUSHED_ONLINE, VIEW)[-2:]
    assert first == second
    events = newest_events(workspace.registry.journal, workspace.snapshot().registered(VIEW), 50)
    assert sum(event["rows"] for event in events if event["kind"] == PUSHED_ONLINE) == 6


def test_closing_writes_what_waits_and_a_run_does_not_fail_for_the_journal(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "FIRST_SECONDS", 60.0)
    append = type(workspace.registry.journal).append
    with monkeypatch.context() as patch:
        patch.setattr(type(workspace.registry.journal), "append", lambda *given: time.sleep(0.2) or append(*given))
        push_one(workspace, 7, "online")
        push_one(workspace, 7)
        workspace.close()
    assert [each["rows"] for each in documents(workspace, PUSHED_ONLINE, VIEW)] == [1]
    assert identities(told(workspace)) == in_log(workspace)

    def refuse(*arguments: Any) -> list[int]:
        raise AuthError("No.", status=403)

    with monkeypatch.context() as patch:
        patch.setattr(type(workspace.registry.journal), "append", refuse)
        succeeded(materialize_incremental(workspace))
        with pytest.raises(AuthError):  # it would remove what nobody knows any more
            optimize(workspace)
    succeeded(materialize_incremental(workspace))
    assert identities(told(workspace)) == in_log(workspace)


def test_notes_are_of_one_process_and_outlive_a_thread_that_does_not_start(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "FIRST_SECONDS", 60.0)
    table, start = workspace.snapshot().registered(VIEW).table, threading.Thread.start
    notes = notes_of(workspace)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        notes.pushed_online(table, [b"0001"])
    notes.close()  # as `atexit` does
    notes._stop.clear()
    notes.pushed_online(table, [b"0002"])
    if (child := os.fork()) == 0:
        try:
            notes_of(workspace).pushed_online(table, [b"0003"])
            notes_of(workspace).close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    noted = [b64decode(each["crcs"]) for each in documents(workspace, PUSHED_ONLINE, VIEW)]
    assert noted == [b"0003"]
    workspace.close()
    assert threading.Thread.start is start
    noted = [b64decode(each["crcs"]) for each in documents(workspace, PUSHED_ONLINE, VIEW)]
    assert noted == [b"0003", b"00010002"]


def test_a_close_that_waited_long_enough_leaves_no_registry_open(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noting, "CLOSE_SECONDS", 0.05)
    kind, hangs, begun = type(workspace.registry), threading.Event(), threading.Event()
    append, closed = type(workspace.registry.journal).append, list[Any]()
    monkeypatch.setattr(
        type(workspace.registry.journal), "append", lambda *given: begun.set() or (hangs.wait(10) and append(*given))
    )
    close = kind.close
    monkeypatch.setattr(kind, "close", lambda registry: closed.append(registry) or close(registry))
    push_one(workspace, 7, "online")
    push_one(workspace, 7)
    thread = notes_of(workspace)._thread
    assert begun.wait(10)
    workspace.close()
    assert len(closed) == 1
    hangs.set()
    assert thread is not None
    thread.join(10)
    assert workspace.__dict__.get("registry") in (None, closed[-1])  # none that was opened meanwhile is left


def test_what_nobody_understands_stops_nothing(
    workspace: Workspace, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeded(materialize_incremental(workspace, day(5)))
    journal, table = workspace.registry.journal, workspace.snapshot().registered(VIEW)
    (good,) = documents(workspace, "commit")
    later = {"after": None, "commits": [[*good["commits"][0], 0, None, None, "what a later version adds"]], "more": 1}
    wrong = [{}, {"after": None, "commits": []}, {"after": None, "commits": 7}, {"after": None, "commits": [[0]]}]
    wrong += [{"after": None, "commits": [["0", "x", None, None, None, None, None]]}]
    wrong += [{"after": None, "commits": [[99, "y", None, None, None, None, None]]}]
    journal.append("shop", "commit", [(KEY, each) for each in (later, *wrong)])
    journal.append("shop", PUBLISH, [(KEY, {}), (KEY, {"publish": [], "started_us": None, "from": 3, "to": None})])
    journal.append("shop", PUSHED_ONLINE, [(VIEW, {}), (VIEW, {"id": 3, "generation": 1, "last_us": "", "rows": 0})])
    succeeded(materialize_incremental(workspace, day(8)))
    optimize(workspace)
    collect_garbage(workspace)
    assert [each for each in identities(told(workspace)) if each[1] != "y"] == in_log(workspace)
    kinds = [event["kind"] for event in newest_events(journal, table, 50)]
    assert (kinds.count("commit"), kinds.count(PUBLISH), kinds.count(PUSHED_ONLINE)) == (4, 2, 0)
    assert "kind 'commit', key 'shop_sales.1'" in caplog.text
    assert "It is left out." in caplog.text


@pytest.mark.parametrize("how", ["gc", "apply", "teardown"])
def test_what_is_deleted_is_in_the_journal_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(journals, "MOST_COMMITS", 2)
    monkeypatch.setitem(journals.catch_up.__kwdefaults__, "most", 2)
    write_sales(tmp_path / "sales.parquet", SALES)
    with closing(opened(tmp_path, journal={"retention": "1d"})) as workspace:
        apply_plan(workspace, make_plan(workspace, collect([sales_view()]), partial=False))
        succeeded(materialize_incremental(workspace, day(5)))
        registered = workspace.snapshot().registered(VIEW)
        workspace.clock.advance(timedelta(days=2))
        for base in range(5):
            workspace.offline.commit(registered.table, registered.table_schema, base=base, add=[])
        expected = in_log(workspace)
        if how == "gc":
            assert collect_garbage(workspace).journal == 3
            del expected[0]
        else:
            plan = make_plan(workspace, [], partial=False)
            if how == "teardown":  # of what an apply left that was killed
                plan = replace(plan, steps=tuple(replace(step, drops=()) for step in plan.steps))
            apply_plan(workspace, plan)
            drop_data(workspace)
        assert bool(workspace.offline.tables("shop")) == (how == "gc")
        assert identities(list(commits_of(workspace.registry.journal, registered))) == expected


def test_cleaning_forgets_what_is_older_than_the_settings_say(workspace: Workspace, again: Open) -> None:
    succeeded(materialize_incremental(workspace, day(5)))
    push_one(workspace, 7, "online")
    push_one(workspace, 8)
    workspace.close()
    journal = workspace.registry.journal
    journal.append("shop", "audit", [("apply", {})])
    before = {kind: len(journal.scan("shop", kind)) for kind in (*KINDS, "audit")}
    assert all(before.values())
    assert collect_garbage(workspace).journal == 0
    short = {"journal": {"retention": "0s"}}
    with closing(again(**short)) as other:
        other.clock.advance(timedelta(days=1))
        expected = sum(before.values()) - before["audit"]
        assert collect_garbage(other, dry_run=True).journal == expected
        assert collect_garbage(other).journal == expected
        assert {kind: len(journal.scan("shop", kind)) for kind in (*KINDS, "audit")} == {
            **dict.fromkeys(KINDS, 0),
            "audit": 1,
        }
        # Of what is forgotten only the newest commit is told again: the next ones follow on it.
        catch_up(other, [other.snapshot().registered(VIEW).table])
        assert identities(told(other)) == in_log(other)[-1:]
    keep_audit = {"journal": {"retention": "900d", "audit_retention": "0s"}}
    with closing(again(**keep_audit)) as other:
        other.clock.advance(timedelta(days=2))
        assert collect_garbage(other).journal == 1
        assert identities(told(other)) == in_log(other)[-1:]


def test_a_registry_of_the_first_schema_is_left_to_earlier_programs(tmp_path: Path) -> None:
    stored = Path(__file__).resolve().parents[1] / "data" / "installation-0.1" / "repo"
    shutil.copytree(stored, tmp_path / "repo")
    file = tmp_path / "repo/data/registry.db"

    def schema() -> str:
        with closing(sqlite3.connect(file)) as connection:
            return str(connection.execute("SELECT version_num FROM registry_version").fetchone()[0])

    for is_upgraded in (False, True):
        with FeatureStore(tmp_path / "repo") as store:
            store.materialize_incremental()
            collect_garbage(store.workspace)
            optimize(store.workspace)
            assert schema() == ("0002" if is_upgraded else "0001")
            if is_upgraded:
                table = store.workspace.snapshot().registered("stats")
                found = list(commits_of(store.workspace.registry.journal, table))
                last = store.workspace.offline.find_commit(table.table)
                assert last is not None
                assert found[-1].identity == last.identity
                assert (found[0].rows, found[0].first_sequence, found[0].origin) == (None, None, None)
                assert found[0].at_us is not None
        upgrade_registry(f"sqlite:///{file}")


def test_people_see_commits_and_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    (tmp_path / "features.py").write_text("")
    with closing(opened(tmp_path)) as workspace:
        write_sales(tmp_path / "sales.parquet", SALES)
        apply_records(workspace, collect([sales_view(pushed=True)]))
        succeeded(materialize_incremental(workspace, day(5)))
        push_one(workspace, 7, "online")
    fs = CommandLine(tmp_path, capsys)
    lines = [re.sub("  +", " | ", line).split(" | ")[1:] for line in fs("log", "--commits", VIEW).splitlines()]
    assert {each["kind"] for each in fs.json("log", "--commits", VIEW)} == {"commit", "publish", "pushed_online"}
    assert [line[:3] for line in lines] == [
        ["what", "by", "about"],
        ["commit 0", "run", "5 rows, 0 to 4"],
        ["publish nothing to 0", "run", "4 written"],
        ["pushed online only", "push", "1 records"],
    ]
