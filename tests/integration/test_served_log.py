"""What feature servers keep of their answers: the same as clients got, and nothing that must not be kept."""

from __future__ import annotations

import math
import os
from array import array
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine
from support.served import SECRET, ask, ids_of, kept, logged_project
from support.serving import Project, serving_here

from featurestore import FeatureService, FeatureStore, ServedLog
from featurestore.errors import DamagedFileError, DefinitionError, InputError, NotFoundError, SettingsError
from featurestore.online.records.keys import EntityEncoder, KeyEncoder
from featurestore.served import files
from featurestore.served.forgetting import forget
from featurestore.served.hashing import LogKeys
from featurestore.served.keep import read_served
from featurestore.served.retaining import drop_all, retain
from featurestore.server.app import create_app
from featurestore.server.read import served as server_log
from featurestore.types.times import to_datetime, to_instant, to_rfc3339


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-02-01T12:00:00Z")


@pytest.fixture
def project(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FS_SERVED__SECRET", SECRET["secret"])
    return logged_project(tmp_path / "repo", clock())


def test_the_log_holds_what_clients_got(project: Project, clock: ManualClock) -> None:
    """Customer 1 is fresh, 2 too old, 3 has a NaN, 4 is unknown, and one has no key."""
    answers: dict[str, Any] = {}
    with serving_here(project.workspace(clock)) as client:
        routes = {"origin": ["JFK", "JFK", "BOS", "JFK", "JFK"], "dest": ["LAX"] * 5}
        entities = {"customer_id": [1, 2, 3, 4, None], **routes}
        amounts = {"amount": [14.0, 1.0, None, 2.0, 3.0]}
        answers["r1"] = ask(client, "logged", entities, "r1", request_data=amounts)
        clock.now_us += 1_000_000
        one = {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}
        answers["r2"] = ask(client, "logged", one, "r2", request_data={"amount": [7.0]}, full_feature_names=True)
        short = {"feature_service": "logged", "entities": one, "request_data": {"amount": [7.0]}}
        client.post("/v1/online-features", json=short, headers={"x-request-id": "r3"})
        client.post("/v1/online-features", json={"features": ["fresh:clicks"], "entities": {"customer_id": [1]}})
        ask(client, "plain", one, "r4")  # keeps no log
    rows = read_served(project.workspace(clock), "logged", 0, clock() + 1).to_pylist()
    assert [(row["request_id"], row["row"]) for row in rows] == [
        *(("r1", place) for place in range(5)), ("r2", 0), ("r3", 0)
    ]  # fmt: skip
    names = ["clicks", "score", "miles", "amount_per_click"]
    for row in rows[:6]:
        answer, place = answers[row["request_id"]], row["row"]
        for position, name in enumerate(names):
            value, status = answer["rows"][place][position], answer["status"][place][position]
            if row[f"status.{name}"] != "PRESENT":
                assert row[f"value.{name}"] is None
                assert row[f"status.{name}"] == status
            elif isinstance(row[f"value.{name}"], float) and math.isnan(row[f"value.{name}"]):
                assert (value, status) == (None, "NULL_VALUE")  # JSON has no NaN
            else:
                assert (row[f"value.{name}"], "PRESENT") == (value, status)
        for view in ("fresh", "routes"):
            told = answer["event_timestamp"][view][place]
            kept = row[f"view.{view}.event_timestamp"]
            assert (None if kept is None else to_rfc3339(to_instant(kept))) == told
    assert [row["status.clicks"] for row in rows] == [
        "PRESENT", "OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND", "NOT_FOUND", "PRESENT", "PRESENT"
    ]  # fmt: skip
    assert [row["key.customer_id"] for row in rows] == [1, 2, 3, 4, None, 1, 1]
    assert [row["request.amount"] for row in rows] == [14.0, 1.0, None, 2.0, 3.0, 7.0, 7.0]
    assert rows[0]["served_at"] == rows[4]["served_at"] < rows[5]["served_at"]
    head = project.workspace(clock).snapshot().chain.head
    assert {(row["revision"], row["sample"], row["view.fresh.generation"]) for row in rows} == {(head, 1.0, 1)}
    assert len({row["code"] for row in rows}) == 1


def test_values_keep_their_types_and_records_their_checksums(project: Project, clock: ManualClock) -> None:
    values = {
        "an_int32": 7, "an_int64": 2**62 + 1, "a_float32": 0.5, "a_float64": -0.0, "a_bool": False, "a_string": "é",
        "some_bytes": b"\0\xff", "an_instant": to_datetime(clock()), "a_date": to_datetime(clock()).date(),
        "numbers": [1.0, float("inf")],
    }  # fmt: skip
    project.put("everything", {"customer_id": 5}, values, event_us=clock() - 1)
    with serving_here(project.workspace(clock)) as client:
        ask(client, "whole", {"customer_id": [5, 6]}, "r")
    workspace = project.workspace(clock)
    first, second = read_served(workspace, "whole", 0, clock() + 1).to_pylist()
    for name, value in values.items():
        assert first[f"value.{name}"] == value, name
        assert first[f"status.{name}"] == "PRESENT"
        assert second[f"value.{name}"] is None
    assert math.copysign(1, first["value.a_float64"]) == -1
    assert first["status.a_decimal"] == "NULL_VALUE"
    layout = workspace.snapshot().views["everything"].layout
    (record,) = workspace.online.mget(KeyEncoder(layout).keys(EntityEncoder(layout.join_keys).texts([[5]])))
    assert record is not None
    assert first["view.everything.crc"] == int.from_bytes(record[-4:])
    assert first["view.everything.schema"] == record[17:25].hex()
    assert second["view.everything.crc"] is None


def test_keys_are_hashed_and_what_is_personal_is_left_out(project: Project, clock: ManualClock, tmp_path: Path) -> None:
    with serving_here(project.workspace(clock)) as client:
        answer = ask(client, "private", {"customer_id": [1, 2, 1]}, "r")
    assert answer["rows"][0] == ["ann@example.org", "Bonn", 15]
    rows = read_served(project.workspace(clock), "private", 0, clock() + 1)
    assert {"value.city", "status.email", "status.length"} <= set(rows.column_names)
    assert {"value.email", "value.length"}.isdisjoint(rows.column_names)
    keys = rows.column("key.customer_id").to_pylist()
    assert keys[0] == keys[2] != keys[1]
    assert all(len(key) == 32 for key in keys)
    everything = b"".join(path.read_bytes() for path in project.root.rglob("*.parquet"))
    assert b"ann@" not in everything
    crc = checksum_of(project, clock, "hidden", 1)
    assert rows.column("view.hidden.crc").to_pylist()[1] is None
    assert rows.column("view.hidden.crc").to_pylist()[0] == LogKeys(SECRET["secret"]).own.checksum(crc) != crc


def test_no_checksum_of_a_personal_field_is_kept_beside_plain_keys(project: Project, clock: ManualClock) -> None:
    with (project.root / "features.py").open("a") as text:
        text.write(
            'open = FeatureService("open", features=[hidden[["city"]], fresh], log=ServedLog(1.0, keys="plain"))'
        )
    project.apply()
    kept(project, clock, "open", 0, [1])
    (row,) = read_served(project.workspace(clock), "open", 0, clock() + 1).to_pylist()
    assert (row["value.city"], row["view.hidden.crc"]) == ("Bonn", None)
    assert row["view.fresh.crc"] == checksum_of(project, clock, "fresh", 1)


def checksum_of(project: Project, clock: ManualClock, view: str, customer: int) -> int:
    workspace = project.workspace(clock)
    layout = workspace.snapshot().views[view].layout
    (record,) = workspace.online.mget(KeyEncoder(layout).keys(EntityEncoder(layout.join_keys).texts([[customer]])))
    assert record is not None
    return int.from_bytes(record[-4:])


def test_a_server_does_not_start_without_the_secret_that_a_log_needs(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FS_SERVED__SECRET")
    with pytest.raises(SettingsError, match="The log of private keeps join keys hashed") as told:
        create_app(project.workspace(clock))
    assert "served: {secret:" in told.value.hint


def test_a_full_queue_drops_and_counts_and_answers_all_the_same(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "MOST_ROWS", 3)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 60.0)
    with serving_here(project.workspace(clock)) as client:
        for number in range(4):
            ask(client, "whole", {"customer_id": [1, 2]}, f"r{number}")
        text = client.get("/metrics").text
    assert 'featurestore_served_dropped_total{reason="full",service="whole"} 6.0' in text
    rows = read_served(project.workspace(clock), "whole", 0, clock() + 1)
    assert rows.column("request_id").to_pylist() == ["r0", "r0"]


def test_a_failing_disk_loses_rows_and_says_so(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = project.root / "data" / "offline" / "shop"
    place.mkdir(parents=True)
    (place / "_served.whole").write_text("a file where the folder should be")
    with serving_here(project.workspace(clock)) as client:
        ask(client, "whole", {"customer_id": [1]}, "r")
    assert "1 rows of the served log of whole are lost: " in caplog.text


def test_chance_takes_about_the_share_that_is_asked_for(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = array("I", [0] * 1_009 + [*reversed(range(2**28, 2**32, 2**28))]).tobytes()  # the last is taken first
    monkeypatch.setattr(
        server_log.secrets, "token_bytes", lambda size: drawn if size == len(drawn) else os.urandom(size)
    )
    text = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(
        text.replace("[everything], log=ServedLog(1.0", "[everything], log=ServedLog(0.5")
    )
    project.apply()
    with serving_here(project.workspace(clock)) as client:
        for number in range(15):
            ask(client, "whole", {"customer_id": [1]}, f"r{number}")
    rows = read_served(project.workspace(clock), "whole", 0, clock() + 1)
    assert rows.column("request_id").to_pylist() == [f"r{number}" for number in range(7)]
    assert set(rows.column("sample").to_pylist()) == {0.5}


def test_an_entity_is_forgotten_in_every_service_and_others_stay(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(project, clock, "whole", 1, [1, 2, 3])
    kept(project, clock, "private", 1, [1, 2])
    hashes = ids_of(project, clock, "private")
    fs = CommandLine(project.root, capsys)
    assert "2 rows would be forgotten, in 2 files" in fs("served", "forget", "--entity", "customer_id=1", "--dry-run")
    assert ids_of(project, clock) == [1, 2, 3]
    assert "2 rows are forgotten, in 2 files" in fs("served", "forget", "--entity", "customer_id=1")
    assert ids_of(project, clock) == [2, 3]
    assert ids_of(project, clock, "private") == hashes[1:]
    assert "0 rows are forgotten" in fs("served", "forget", "--entity", "customer_id=1")
    with pytest.raises(InputError, match="'customer' is not a join key"):
        forget(project.workspace(clock), {"customer": 1})
    with pytest.raises(NotFoundError, match="no log of a service 'wohle'"):
        forget(project.workspace(clock), {"customer_id": 1}, ["wohle"])


def test_rows_past_their_retention_go_and_files_of_a_day_become_one(project: Project, clock: ManualClock) -> None:
    for days in (1.9, 2.1, 40):
        kept(project, clock, "private", days, [1])
        kept(project, clock, "whole", days, [1])
    for number in range(9):
        kept(project, clock, "whole", 3 + number / 1_000, [number], number=number)
    workspace = project.workspace(clock)
    before = read_served(workspace, "whole", 0, clock())
    assert retain(workspace, dry_run=True).removed == 3
    assert retain(workspace).removed == 3  # of private those of 2.1 and 40 days, of whole that of 40
    assert len(files.files_of(workspace.offline.blobs("shop", "served.private"))) == 1
    after = read_served(workspace, "whole", 0, clock())
    oldest = to_datetime(clock()) - timedelta(days=30)
    assert after.to_pylist() == [row for row in before.to_pylist() if row["served_at"] > oldest]
    assert len(files.files_of(workspace.offline.blobs("shop", "served.whole"))) == 3  # the nine are one
    assert retain(workspace).removed == 0
    drop_all(workspace)
    assert read_served(workspace, "whole", 0, clock()).num_rows == 0


def test_a_merge_that_was_cut_off_shows_no_row_twice(project: Project, clock: ManualClock) -> None:
    for number in range(9):
        kept(project, clock, "whole", 3 + number / 1_000, [number], number=number)
    workspace = project.workspace(clock)
    blobs = workspace.offline.blobs("shop", "served.whole")
    contents = {blob.name: blobs.get(blob.name, "") for blob in blobs.list()}
    retain(workspace)
    some = list(contents)[:4]
    for name in some:  # the merged file is there, and it died before it had deleted all
        blobs.put(name, contents[name], "")
    assert sorted(ids_of(project, clock)) == list(range(9))
    forget(workspace, {"customer_id": 0})
    assert sorted(ids_of(project, clock)) == list(range(1, 9))
    retain(workspace)
    assert len(files.files_of(blobs)) == 1
    assert sorted(ids_of(project, clock)) == list(range(1, 9))


def test_a_damaged_file_is_named_and_a_cut_off_one_is_none(project: Project, clock: ManualClock) -> None:
    kept(project, clock, "whole", 1, [1])
    workspace = project.workspace(clock)
    (folder,) = (project.root / "data/offline/shop").glob("_served.whole")
    (path,) = folder.glob("*.parquet")
    (folder / f"{path.name}.0123456789abcdef-partial").write_bytes(b"PAR1")
    assert read_served(workspace, "whole", 0, clock()).num_rows == 1
    whole = path.read_bytes()
    for place in (len(whole) // 3, len(whole) - 100):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=path.name):
            read_served(workspace, "whole", 0, clock())


def test_reading_names_what_is_not_there(project: Project, clock: ManualClock) -> None:
    workspace = project.workspace(clock)
    with pytest.raises(NotFoundError, match="'plain' keeps no log") as told:
        read_served(workspace, "plain", 0, clock())
    assert "ServedLog" in told.value.hint
    with pytest.raises(NotFoundError, match="no feature service 'hwole'") as told:
        read_served(workspace, "hwole", 0, clock())
    assert "whole" in told.value.hint
    assert read_served(workspace, "whole", 0, clock()).num_rows == 0


def test_rows_of_several_revisions_are_read_together(project: Project, clock: ManualClock) -> None:
    kept(project, clock, "whole", 2, [1])
    text = (project.root / "features.py").read_text()
    grown = text.replace('Field("an_int32", Int32)', 'Field("an_int32", Int64), Field("more", Int64)')
    (project.root / "features.py").write_text(grown)
    project.apply()
    kept(project, clock, "whole", 1, [2])
    rows = read_served(project.workspace(clock), "whole", 0, clock())
    assert rows.schema.field("value.an_int32").type == pa.int64()
    assert rows.column("status.more").to_pylist() == [None, "NOT_FOUND"]
    (project.root / "features.py").write_text(text.replace('Field("an_int32", Int32)', 'Field("an_int32", String)'))
    project.apply()
    kept(project, clock, "whole", 0.5, [3])
    with pytest.raises(InputError, match=r"'value.an_int32' of the served log is int64 until 2024-01-31T12") as told:
        read_served(project.workspace(clock), "whole", 0, clock())
    assert "and string from 2024-02-01T00:00:00" in told.value.message
    assert "rows before 2024-02-01T00:00:00.000000Z" in told.value.hint
    change = to_instant("2024-02-01T00:00:00Z")
    kinds = [
        read_served(project.workspace(clock), "whole", *span).schema.field("value.an_int32").type
        for span in ((0, change), (change, clock()))
    ]
    assert kinds == [pa.int64(), pa.string()]


def test_the_facade_and_the_command_line_read_it(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept(project, clock, "whole", 1, [1, 2])
    with FeatureStore(project.root, clock=clock) as store:
        assert store.read_served("whole").num_rows == 2
        assert store.read_served("whole", start=to_datetime(clock())).num_rows == 0
        assert store.read_served("whole", end=to_datetime(clock()) - timedelta(days=1)).num_rows == 0
        assert store.forget_served({"customer_id": 2}, "whole").rows == 1
    fs = CommandLine(project.root, capsys)
    assert "whole" in fs("served", "list")
    assert "1 rows written" in fs("served", "export", "whole", "--out", str(tmp_path / "out.parquet"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sample": 0}, "share of the requests"),
        ({"sample": 1.5}, "share of the requests"),
        ({"sample": True}, "share of the requests"),
        ({"sample": float("nan")}, "share of the requests"),
        ({"retention": timedelta(0)}, "greater than zero"),
        ({"keys": "secret"}, "'hashed' or 'plain'"),
    ],
)
def test_a_log_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        ServedLog(**options)


def test_a_service_keeps_its_log_through_the_registry(project: Project) -> None:
    services = project.workspace().snapshot().services
    assert services["private"].log == ServedLog(1.0, retention=timedelta(days=2))
    assert services["plain"].log is None
    assert repr(services["whole"].log) == "ServedLog(sample=1.0, keys='plain')"
    assert isinstance(services["whole"], FeatureService)
