"""What models predicted from answers: taken by servers, kept beside the served log, read beside what was served."""

from __future__ import annotations

import json
import os
import signal
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine
from support.serving import TOKEN, Project, error_of, serving, serving_here, small_project, until

from featurestore import FeatureStore
from featurestore.client import FeatureClient
from featurestore.client import predictions as client_memory
from featurestore.errors import DamagedFileError, InputError, IntervalError, NotFoundError
from featurestore.served import files
from featurestore.served.joining import join_predictions, read_predictions
from featurestore.served.predictions import KeptFor, Prediction, checked
from featurestore.served.retaining import drop_all, retain
from featurestore.server.read import known, predicted
from featurestore.server.read import served as server_log
from featurestore.types.times import system_clock, to_datetime

LOGGED = """

from featurestore import ServedLog

logged = FeatureService("logged", features=[fresh], log=ServedLog(1.0, keys="plain"))
hashed = FeatureService("hashed", features=[fresh], log=ServedLog(1.0))
seldom = FeatureService("seldom", features=[fresh], log=ServedLog(0.5, keys="plain"))
"""
HOSTILE = "<script>alert('x')</script>; rm -rf / $(id) `id` \"'\\ ünï\u202e"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-02-01T12:00:00Z")


@pytest.fixture
def project(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FS_SERVED__SECRET", "a long random text that nobody guesses")
    return logging_project(tmp_path / "repo", clock())


def logging_project(root: Path, now_us: int) -> Project:
    found = small_project(root, now_us)
    with (found.root / "features.py").open("a") as features:
        features.write(LOGGED)
    found.apply()
    return found


@contextmanager
def clients(project: Project, clock: ManualClock) -> Iterator[tuple[FeatureClient, httpx.Client]]:
    """Give our own client of a server, and a plain one."""
    with serving_here(project.workspace(clock)) as plain, FeatureClient(str(plain.base_url), timeout_s=10) as client:
        yield client, plain


def send(client: httpx.Client, **changes: Any) -> httpx.Response:
    body = {"request_id": "r", "service": "logged", "model": "m", "values": {"delay": [1.5]}, **changes}
    return client.post("/predictions", json={name: value for name, value in body.items() if value is not ...})


def logged(project: Project, clock: ManualClock, service: str = "logged") -> list[dict[str, Any]]:
    return read_predictions(project.workspace(clock), service, 0, clock() + 1).to_pylist()


def test_predictions_stand_beside_what_was_served(project: Project, clock: ManualClock) -> None:
    with clients(project, clock) as (client, _):
        first = client.get_online_features("logged", {"customer_id": [1, 2, 3]})
        clock.now_us += 1_000_000
        second = client.get_online_features(feature_service="logged", entities={"customer_id": [3]})
        assert (first.is_kept, second.is_kept) == (True, True)
        assert first.request_id != second.request_id
        several = {
            "delay": np.array([1, 2.5, float("nan")]),
            "why": ["a", None, HOSTILE],
            "is_late": [np.bool_(True), False, None],
            "odd": [float("inf"), np.float32("-inf"), np.int64(3)],
            "seen": pd.Series([1, None, pd.NA], dtype="Int64"),
        }
        clock.now_us += 1_000_000
        assert client.log_prediction(first.request_id, several, model="delays-2") == 3
        assert client.log_prediction(second.request_id, {"delay": np.float32(0.5)}, model=HOSTILE[:100]) == 1
    rows = logged(project, clock)
    at = to_datetime(clock())
    told = [(row["request_id"], row["row"], row["predicted_at"], row["model"]) for row in rows]
    assert told == [
        *((first.request_id, place, at, "delays-2") for place in range(3)),
        (second.request_id, 0, at, HOSTILE[:100]),
    ]
    assert [row["prediction.delay"] for row in rows] == [1.0, 2.5, None, 0.5]
    assert [row["prediction.why"] for row in rows] == ["a", None, HOSTILE, None]
    assert [row["prediction.is_late"] for row in rows] == [True, False, None, None]
    assert [row["prediction.odd"] for row in rows] == [None, None, 3.0, None]
    assert [row["prediction.seen"] for row in rows] == [1.0, None, None, None]
    found = join_predictions(project.workspace(clock), "logged", 0, clock() + 1)
    assert not any(found.counts().values())
    beside = found.rows.select(["key.customer_id", "value.clicks", "prediction.delay", "model"]).to_pylist()
    assert [tuple(row.values()) for row in beside] == [
        (1, 7, 1.0, "delays-2"), (2, None, 2.5, "delays-2"), (3, 3, None, "delays-2"), (3, 3, 0.5, HOSTILE[:100])
    ]  # fmt: skip


def test_the_last_of_one_row_and_model_counts_and_lonely_ones_are_counted(project: Project, clock: ManualClock) -> None:
    with clients(project, clock) as (client, plain):
        asked = client.get_online_features("logged", {"customer_id": [1, 2]})
        for model, delays in (("a", [1, 2]), ("b", [3, 4]), ("a", [5, 6])):
            clock.now_us += 1
            client.log_prediction(asked.request_id, {"delay": delays}, model=model)
        assert send(plain, request_id="nobodys", values={"delay": [1, 2, 3]}).json() == {"rows": 3, "dropped": 0}
    found = join_predictions(project.workspace(clock), "logged", 0, clock() + 1)
    assert {name: count for name, count in found.counts().items() if count} == {"repeated": 2, "without_served": 3}
    rows = [(row["row"], row["model"], row["prediction.delay"]) for row in found.rows.to_pylist()]
    assert rows == [(0, "a", 5), (0, "b", 3), (1, "a", 6), (1, "b", 4)]
    early = join_predictions(project.workspace(clock), "logged", 0, clock() - 3)
    assert (early.rows.num_rows, early.without_served) == (0, 0)  # nothing was served by then


def test_a_prediction_may_be_logged_up_to_a_day_after_its_answer(project: Project, clock: ManualClock) -> None:
    with clients(project, clock) as (client, _):
        asked, served_us = client.get_online_features("logged", {"customer_id": [1]}), clock()
        clock.now_us += 20 * 3_600_000_000
        client.log_prediction(asked.request_id, {"delay": [1]}, model="a")
    late = join_predictions(project.workspace(clock), "logged", 0, served_us + 1)
    assert late.rows.column("prediction.delay").to_pylist() == [1.0]
    assert not join_predictions(project.workspace(clock), "logged", clock() - 1, clock() + 1).without_served


def test_requests_of_one_id_are_counted(project: Project, clock: ManualClock) -> None:
    """Each request brought the same id: the prediction stands beside the last, and the others are told."""
    with serving_here(project.workspace(clock)) as client:
        for request_id, customer in (("same", 1), ("same", 2), ("own", 3), ("same", 4), ("lone", 1), ("lone", 2)):
            clock.now_us += 1
            body = {"feature_service": "logged", "entities": {"customer_id": [customer]}}
            assert client.post("/v1/online-features", json=body, headers={"x-request-id": request_id}).is_success
        for request_id in ("same", "own"):
            assert send(client, request_id=request_id).is_success
    found = join_predictions(project.workspace(clock), "logged", 0, clock() + 1)
    assert {name: count for name, count in found.counts().items() if count} == {"same_id": 2}
    assert sorted(found.rows["key.customer_id"].to_pylist()) == [3, 4]
    assert "2 served rows have the request id of a later one" in "".join(found.notes())
    with FeatureStore(project.root, clock=clock) as store:
        end, start = to_datetime(clock() - 1), to_datetime(clock())
        for read in (store.read_served, store.read_predictions, store.join_predictions, store.parity):
            for first, last in ((start, end), (start, start)):
                with pytest.raises(IntervalError, match="is empty"):
                    read("logged", first, last)


def test_a_client_leaves_out_what_nobody_can_join(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    chances = iter([0.9, 0.1, 0.9, 0.0])
    monkeypatch.setattr(server_log.ServedLogs, "_chance", lambda self: next(chances))
    with clients(project, clock) as (client, plain):
        asked = [client.get_online_features("seldom", {"customer_id": [1]}) for _ in range(3)]
        assert [answer.is_kept for answer in asked] == [False, True, False]
        only = [client.log_prediction(answer.request_id, {"delay": 1}, model="m") for answer in asked[:2]]
        assert only == [0, 1]
        assert client.log_prediction(asked[2].request_id, {"delay": 1}, model="m", only_kept=False) == 1
        body = {"feature_service": "plain", "entities": {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}}
        assert "x-served-log" not in plain.post("/v1/online-features", json=body).headers
        body = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}
        assert "x-served-log" not in plain.post("/v1/online-features", json=body).headers
        body = {"feature_service": "logged", "entities": {"customer_id": [1]}}
        assert plain.post("/get-online-features", json=body).headers["x-served-log"] == "kept"
    assert {row["request_id"] for row in logged(project, clock, "seldom")} == {asked[1].request_id, asked[2].request_id}


def test_a_client_remembers_its_newest_requests(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_memory, "MOST_REQUESTS", 2)
    with clients(project, clock) as (client, _):
        asked = [client.get_online_features("logged", {"customer_id": [1]}).request_id for _ in range(3)]
        with pytest.raises(InputError, match=f"does not know the request '{asked[0]}'") as told:
            client.log_prediction(asked[0], {"delay": 1}, model="m")
        assert "Pass service=" in told.value.hint
        assert client.log_prediction(asked[0], {"delay": 1}, model="m", service="logged") == 1
        assert client.log_prediction(asked[1], {"delay": 1}, model="m") == 1
        with pytest.raises(InputError, match="2 predictions, and the request had 1 entity rows"):
            client.log_prediction(asked[1], {"delay": [1, 2]}, model="m")
        with pytest.raises(InputError, match="not equally long"):
            client.log_prediction(asked[1], {"delay": [1], "other": [1, 2]}, model="m")
        for odd in (datetime(2024, 1, 1), pd.Timestamp("2024-01-01"), np.datetime64("2024-01-01"), b"x", [1.0], {}):
            with pytest.raises(InputError, match=r"A value of the prediction 'delay' is a \w+\."):
                client.log_prediction(asked[1], {"delay": [odd]}, model="m")
        with pytest.raises(InputError, match="values is a list"):
            client.log_prediction(asked[1], [1.0], model="m")  # type: ignore[arg-type]
        with pytest.raises(NotFoundError, match="no feature service 'loged'") as told:
            client.log_prediction(asked[1], {"delay": 1}, model="m", service="loged")
        assert "logged" in str(told.value)
        features = client.get_online_features(["fresh:clicks"], {"customer_id": [1]})
        with pytest.raises(InputError, match="does not know the request"):
            client.log_prediction(features.request_id, {"delay": 1}, model="m")
        frame = pd.DataFrame({"delay": [1.5]})
        assert client.log_prediction(asked[2], dict(frame.items()), model="m") == 1


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ({"service": "plain"}, 404, "keeps no log"),
        ({"service": "nobody"}, 404, "There is no feature service 'nobody'"),
        ({"request_id": "a b"}, 422, "is not the id of a request"),
        ({"request_id": ""}, 422, "is not the id of a request"),
        ({"model": ""}, 422, "length >= 1"),
        ({"model": "m\x1b[31m"}, 422, "has a control character in its name"),
        ({"model": ...}, 422, "missing required field `model`"),
        ({"values": {}}, 422, "There are no values"),
        ({"values": {"delay": 1.5}}, 422, "Expected `array`"),
        ({"values": {"delay": [1, "2"]}}, 422, "'delay' has values of several kinds"),
        ({"values": {"delay": [1, True]}}, 422, "'delay' has values of several kinds"),
        ({"values": {"delay": [[1]]}}, 422, "'delay' is a list or an object"),
        ({"values": {"delay": [2**53 + 1]}}, 422, "does not hold it exactly"),
        ({"values": {"delay": [10**400]}}, 422, "does not hold it exactly"),
        ({"values": {"a": [1], "b": [1, 2]}}, 422, "'a' has 1 values and 'b' has 2"),
        ({"values": {"a b": [1]}}, 422, "'a b' is not a name for a prediction"),
        ({"values": {"a": [1], "A": [1]}}, 422, "differ only in case"),
        ({"values": {"delay": [0] * 1_001}}, 413, "1001 rows are more than 1000"),
        ({"values": {f"p{number}": [0] for number in range(101)}}, 413, "101 predictions are more than 100"),
        ({"more": 1}, 422, "'more' is not one of its keys"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(
    project: Project, clock: ManualClock, changes: Mapping[str, Any], status: int, told: str
) -> None:
    with serving_here(project.workspace(clock)) as client:
        answer = send(client, **changes)
    assert answer.status_code == status, answer.text
    assert told in error_of(answer)["message"]
    assert logged(project, clock) == []


def test_json_has_no_nan_and_a_body_has_a_limit(project: Project, clock: ManualClock) -> None:
    head = b'{"request_id": "r", "service": "logged", "model": "m", "values": {"delay": ['
    json_type = {"content-type": "application/json"}
    with serving_here(project.workspace(clock)) as client:
        for value in (b"NaN", b"Infinity", b"1e999"):
            answer = client.post("/predictions", content=head + value + b"]}}", headers=json_type)
            assert answer.status_code in (400, 422), value
        answer = client.post("/predictions", content=head + b" " * (2 << 20) + b"1]}}", headers=json_type)
        assert answer.status_code == 413
    assert logged(project, clock) == []


def test_who_may_read_features_may_log_predictions(project: Project, clock: ManualClock) -> None:
    with serving_here(project.workspace(clock), token=TOKEN) as client:
        assert send(client).status_code == 401
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert send(client).status_code == 200


def test_a_full_queue_drops_and_counts(project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_log, "MOST_ROWS", 3)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 60.0)
    with serving_here(project.workspace(clock)) as client:
        answers = [send(client, request_id=f"r{n}", values={"delay": [1, 2]}).json() for n in range(3)]
        text = client.get("/metrics").text
    assert answers == [{"rows": 2, "dropped": 0}, {"rows": 0, "dropped": 2}, {"rows": 0, "dropped": 2}]
    assert 'featurestore_predicted_dropped_total{reason="full",service="logged"} 4.0' in text
    assert [row["request_id"] for row in logged(project, clock)] == ["r0", "r0"]


def test_the_queue_has_room_again_once_the_thread_took_it(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "MOST_ROWS", 2)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 0.01)
    with serving_here(project.workspace(clock)) as client:
        for number in range(3):
            until(lambda number=number: send(client, request_id=f"r{number}", values={"p": [1, 2]}).json()["rows"] == 2)
    assert [row["request_id"] for row in logged(project, clock)] == ["r0", "r0", "r1", "r1", "r2", "r2"]


def test_a_failing_disk_loses_predictions_and_says_so(
    project: Project, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    place = project.root / "data" / "offline" / "shop"
    place.mkdir(parents=True)
    (place / "_predicted.logged").write_text("a file where the folder should be")
    with serving_here(project.workspace(clock)) as client:
        send(client)
    assert "1 rows of the log of predictions of logged are lost: " in caplog.text


def test_a_killed_server_leaves_whole_files_and_two_servers_one_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed while it takes predictions: what was written stays; the other's are there, too."""
    monkeypatch.setenv("FS_SERVED__SECRET", "a long random text that nobody guesses")
    project = logging_project(tmp_path / "repo", system_clock())
    with serving(project.root) as one, serving(project.root) as other:
        with one.client() as client, other.client() as second:
            for number in range(200):
                assert send(client, request_id=f"one-{number}").status_code == 200
            os.kill(one.process.pid, signal.SIGKILL)
            one.process.wait()
            assert send(second, request_id="other").status_code == 200
        one.process.returncode = 0  # for `serving`
    rows = read_predictions(project.workspace(), "logged", 0, system_clock() + 1).to_pylist()
    assert "other" in {row["request_id"] for row in rows}
    assert len({row["instance"] for row in rows}) <= 2
    assert all(row["prediction.delay"] == 1.5 for row in rows)


def kept(project: Project, clock: ManualClock, days: float, request_id: str, **values: list[Any]) -> None:
    """Serve customers 1 and 2 and log a prediction for them, so many days ago."""
    with serving_here(project.workspace(ManualClock(clock() - round(days * 86_400_000_000)))) as client:
        for service in ("logged", "hashed"):
            body = {"feature_service": service, "entities": {"customer_id": [1, 2]}}
            assert client.post("/v1/online-features", json=body, headers={"x-request-id": request_id}).is_success
            sent = send(client, service=service, request_id=request_id, values=values or {"delay": [1, 2]})
            assert sent.is_success, sent.text


def test_predictions_of_forgotten_rows_are_forgotten(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(project, clock, 1, "a")
    kept(project, clock, 0.5, "b")
    fs = CommandLine(project.root, capsys)
    assert "4 rows and 4 of predictions are forgotten" in fs("served", "forget", "--entity", "customer_id=1")
    for service in ("logged", "hashed"):
        rows = logged(project, clock, service)
        assert [(row["request_id"], row["row"], row["prediction.delay"]) for row in rows] == [("a", 1, 2), ("b", 1, 2)]
        found = join_predictions(project.workspace(clock), service, 0, clock() + 1)
        assert (found.rows.num_rows, found.without_served) == (2, 0)
    assert "0 rows are forgotten" in fs("served", "forget", "--entity", "customer_id=1")


def test_retention_merging_and_teardown_are_those_of_the_served_log(project: Project, clock: ManualClock) -> None:
    kept(project, clock, 40, "old")
    for number in range(9):
        kept(project, clock, 3 + number / 1_000, f"r{number}")
    workspace = project.workspace(clock)
    before = [row for row in logged(project, clock) if row["request_id"] != "old"]
    assert retain(workspace, dry_run=True).removed == 4
    assert retain(workspace).removed == 4  # of two services what was served, and predictions
    assert logged(project, clock) == before
    assert len(before) == 18
    assert len(files.files_of(workspace.offline.blobs("shop", "predicted.logged"))) == 1
    drop_all(workspace)
    assert logged(project, clock) == []


def test_a_name_has_one_kind_of_value(project: Project, clock: ManualClock) -> None:
    """What a server knows it refuses; what two servers took is read, each kind in a column of its own, and counted."""
    odd = {"request_id": "b", "model": "odd", "values": {"p": ["x", "y"], "q": [True, True]}}
    with clients(project, clock) as (client, plain), serving_here(project.workspace(clock)) as other:
        for request_id in "ab":
            asked = {"feature_service": "logged", "entities": {"customer_id": [1, 2]}}
            assert plain.post("/v1/online-features", json=asked, headers={"x-request-id": request_id}).is_success
        send(plain, request_id="a", values={"p": [1, 2.5], "q": [None, None]})
        assert client.log_prediction("a", {"p": np.array([3, 4])}, model="m", service="logged") == 2
        assert send(plain, request_id="a", values={"p": [None, None], "q": ["one", "two"]}).is_success
        answer = send(plain, **odd)
        assert answer.status_code == 422
        assert (
            "The prediction 'p' holds texts, and numbers are logged under this name for 'logged'."
            in error_of(answer)["message"]
        )
        assert send(plain, **{**odd, "service": "seldom"}).is_success  # names are those of a service
        clock.now_us += 1
        assert send(other, **odd).is_success  # nothing is in a file yet
    assert len(files.files_of(project.workspace(clock).offline.blobs("shop", "predicted.logged"))) == 4
    with FeatureStore(project.root, clock=clock) as store:
        rows = store.read_predictions("logged")
        assert [name for name in rows.column_names if name.startswith("prediction.")] == [
            "prediction.p", "prediction.q", "prediction.p.text", "prediction.q.boolean"
        ]  # fmt: skip
        assert rows["prediction.p"].to_pylist()[-2:] == [None, None]
        assert rows["prediction.p.text"].to_pylist()[-2:] == ["x", "y"]
        found = store.join_predictions("logged")
        assert found.rows.select(["prediction.p", "prediction.p.text", "model"]).to_pylist() == [
            {"prediction.p": 3.0, "prediction.p.text": None, "model": "m"},
            {"prediction.p": 4.0, "prediction.p.text": None, "model": "m"},
            {"prediction.p": None, "prediction.p.text": "x", "model": "odd"},
            {"prediction.p": None, "prediction.p.text": "y", "model": "odd"},
        ]
        assert found.other_kind == 4
        assert "4 values are of another kind than most of their name, in columns of their own" in [*found.notes()]
        early = join_predictions(store.workspace, "logged", 0, clock())
        assert early.other_kind == 0


def test_one_odd_request_does_not_keep_the_others_out(project: Project, clock: ManualClock) -> None:
    with serving_here(project.workspace(clock)) as client:
        assert send(client, values={"p": ["odd", "odd"]}).is_success
        told = [send(client, values={"p": [1.5]}).status_code for _ in range(4)]
        assert told == [422, 422, 200, 200]
        assert send(client, values={"p": ["odd"]}).status_code == 422


def test_what_is_in_use_keeps_its_place_over_a_restart(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "MOST_SHAPES", 2)
    with serving_here(project.workspace(clock)) as client:
        send(client, values={"p": [1.5] * 900, "q": [None] * 900})
        send(client, values={"other": [True] * 900})
    (path, _) = (project.root / "data/offline/shop/_predicted.logged").glob("*.parquet")
    with serving_here(project.workspace(clock)) as client:
        until(lambda: send(client, values={"p": ["x"], "q": [None]}).status_code == 422)
        assert send(client, values={"other": [1]}).status_code == 422
        assert send(client, values={"more": [1]}).json() == {"rows": 0, "dropped": 1}
        for values in ({"p": [1.5], "q": ["y"]}, {"other": [True]}):
            assert send(client, values=values).json() == {"rows": 1, "dropped": 0}
    path.write_bytes(b"no Parquet")
    with serving_here(project.workspace(clock)) as client:
        assert send(client, values={"p": [1.5], "q": ["y"]}).is_success


def test_names_models_and_sets_of_names_have_a_bound(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One client's many names are dropped, counted and told; what others log is written as before."""
    monkeypatch.setattr(known, "MOST_SHAPES", 3)
    monkeypatch.setattr(known, "MOST_MODELS", 4)
    with serving_here(project.workspace(clock)) as client:
        sent = [send(client, request_id="innocent").json()]
        sent += [send(client, values={f"n{many}_{n}": [1.0] for n in range(100)}).json() for many in range(3)]
        sent += [send(client, request_id="again", values={"delay": [2.5]}).json()]
        sent += [send(client, model=f"m{number}").json() for number in range(6)]
        sent += [send(client, values={"delay": [0], "n0_1": [1]}).json()]
        sent += [send(client, values={"delay": [0], "n0_2": [1]}).json()]
        assert 'predicted_dropped_total{reason="many",service="logged"} 6.0' in client.get("/metrics").text
    assert [each["rows"] for each in sent] == [1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0]
    assert "6 rows of the log of predictions of logged are lost: within a day it takes at most 200 names" in caplog.text
    rows = logged(project, clock)
    assert {row["request_id"] for row in rows if row["prediction.delay"]} == {"innocent", "again", "r"}
    assert len(rows[0]) == 5 + 101


def test_what_is_not_used_any_more_makes_room() -> None:
    one = Prediction(KeptFor("s", "p", 1), "r", 0, "m", 1, {}, ())
    seen = known.Known()
    for number in range(known.MOST_MODELS):
        assert seen.has_room(one._replace(model=f"m{number}"), number)
        seen.take(one._replace(model=f"m{number}"), number)
    day = known.KNOWN_SECONDS
    assert not seen.has_room(one, known.MOST_MODELS)
    seen.take(one._replace(model="m0"), day - 1)
    assert seen.has_room(one, day + 1)
    assert seen.has_room(one._replace(model="m0"), day + 1)
    assert [name in seen.models for name in ("m0", "m1", "m2")] == [True, False, True]


@pytest.mark.parametrize(("rows", "names"), [(1, 1), (1, 100), (1_000, 3)])
def test_the_queue_counts_what_it_takes_in_memory(rows: int, names: int) -> None:
    body = json.dumps({f"name_{n}": [n + row / 7 for row in range(rows)] for n in range(names)})
    checked(KeptFor("s", "p", 1), "r", 0, "m", json.loads(body))  # what is made once
    tracemalloc.start()
    try:
        held = [checked(KeptFor("s", "p", 1), f"r{n}", 0, f"m{n}", json.loads(body)) for n in range(50)]
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / 2 < sum(size for _, size in held) < taken * 2.5


def test_a_damaged_file_is_named_and_predictions_of_nobody_too(project: Project, clock: ManualClock) -> None:
    kept(project, clock, 1, "a")
    (path,) = (project.root / "data/offline/shop/_predicted.logged").glob("*.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=path.name):
        logged(project, clock)
    with pytest.raises(NotFoundError, match="'plain' keeps no log"):
        logged(project, clock, "plain")
    with pytest.raises(NotFoundError, match="no feature service 'nobody'"):
        join_predictions(project.workspace(clock), "nobody", 0, clock())


def test_the_facade_and_the_command_line_read_them(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept(project, clock, 1, "a", delay=[1.5, None], why=[HOSTILE, "b"])
    with FeatureStore(project.root, clock=clock) as store:
        assert store.read_predictions("logged").num_rows == 2
        assert store.read_predictions("logged", end=to_datetime(clock()) - timedelta(days=2)).num_rows == 0
        assert list(store.join_predictions("logged").to_pandas()["prediction.why"]) == [HOSTILE, "b"]
    fs = CommandLine(project.root, capsys)
    assert "of predictions" in fs("served", "list")
    out = tmp_path / "out.parquet"
    assert "2 rows written" in fs("served", "export", "logged", "--predictions", "--out", str(out))
    assert list(pd.read_parquet(out)["prediction.why"]) == [HOSTILE, "b"]


def test_what_is_held_goes_to_a_file_when_it_is_much(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted, "FILE_ROWS", 4)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 0.01)
    with serving_here(project.workspace(clock)) as client:
        for number in range(2):
            send(client, request_id=f"r{number}", values={"delay": [1, 2]})
        until(lambda: len(logged(project, clock)) == 4)
        assert 'featurestore_predicted_rows_total{service="logged"} 4.0' in client.get("/metrics").text
