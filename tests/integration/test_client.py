"""The Python client against real servers, and against what is none."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.redis_server import RedisServer
from support.serving import FEATURES, TOKEN, Project, serving_here, small_project

from featurestore import errors
from featurestore.client import FeatureClient
from featurestore.server.http.errors import _ANSWERS, error_answer
from featurestore.types.times import system_clock

LARGE = 2**63 - 25
MODEL = {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    now_us = system_clock()
    project = small_project(tmp_path_factory.mktemp("client") / "repo", now_us)
    row = {
        "an_int32": -7,
        "an_int64": LARGE,
        "a_float32": 0.5,
        "a_float64": 0.1,
        "a_bool": True,
        "a_string": "naïve ⛵",
        "some_bytes": b"\x00\xff",
        "an_instant": 1_700_000_000_000_001,
        "a_date": date(2024, 2, 29),
        "a_decimal": Decimal("1234567890.12"),
        "numbers": [1.0, 2.5],
    }
    project.put("everything", {"customer_id": LARGE}, row, event_us=now_us)
    project.put("everything", {"customer_id": 5}, {"an_int64": -LARGE}, event_us=now_us)
    return project


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    with serving_here(project.workspace()) as server:
        yield str(server.base_url)


@pytest.fixture
def client(url: str) -> Iterator[FeatureClient]:
    with FeatureClient(url, timeout_s=20) as client:
        yield client


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[ThreadingHTTPServer]:
    """Run what is no feature server; ``server.connections`` counts those that were opened."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.server.connections += 1

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answer(self)

        def log_message(self, *_: Any) -> None:
            """Tests say enough."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.connections = 0
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def canned(status: int, body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def client_of(server: ThreadingHTTPServer, **options: Any) -> FeatureClient:
    return FeatureClient(f"http://127.0.0.1:{server.server_address[1]}/", **options)


def raised_by(answer: Callable[[BaseHTTPRequestHandler], None]) -> errors.FeatureStoreError:
    """Return the error that a read ends in when it is answered so."""
    with answering(answer) as server, client_of(server, timeout_s=20) as client:
        try:
            client.get_online_features(["a:b"], entities={})
        except errors.FeatureStoreError as error:
            return error
    raise AssertionError("it was taken for an answer")


def test_every_type_as_it_is_in_json(client: FeatureClient) -> None:
    names = ["an_int32", "an_int64", "a_float32", "a_float64", "a_bool", "a_string"]
    names += ["some_bytes", "an_instant", "a_date", "a_decimal", "numbers"]
    asked = [f"everything:{name}" for name in names]
    found = client.get_online_features(asked, entities={"customer_id": [LARGE, 5, 6, str(LARGE)]})
    assert found.names == names
    whole = [-7, LARGE, 0.5, 0.1, True, "naïve ⛵", "AP8=", "2023-11-14T22:13:20.000001Z", "2024-02-29"]
    whole += ["1234567890.12", [1.0, 2.5]]
    assert found.rows == [whole, [None, -LARGE, *[None] * 9], [None] * 11, whole]
    null_rest = ["NULL_VALUE", "PRESENT", *["NULL_VALUE"] * 9]
    assert found.statuses == [["PRESENT"] * 11, null_rest, ["NOT_FOUND"] * 11, ["PRESENT"] * 11]
    assert found.to_dict()["an_int64"] == [LARGE, -LARGE, None, LARGE]
    frame = found.to_pandas()
    assert list(frame.columns) == names
    assert [str(frame[name].dtype) for name in names[:5]] == [*["Int64"] * 2, *["Float64"] * 2, "boolean"]
    assert [None if value is pd.NA else value for value in frame["an_int64"]] == [LARGE, -LARGE, None, LARGE]
    present = client.get_online_features(asked, entities={"customer_id": [LARGE]}).to_pandas()
    assert [present[name].dtype for name in names[:5]] == ["int64", "int64", "float64", "float64", "bool"]
    assert present["an_int64"].tolist() == [LARGE]
    assert present["numbers"].tolist() == [[1.0, 2.5]]


def test_a_service_with_request_data_and_full_names(client: FeatureClient) -> None:
    found = client.get_online_features(
        feature_service="model_v1", entities=MODEL, request_data={"amount": [14.0]}, full_feature_names=True
    )
    names = ["fresh__clicks", "fresh__score", "routes__miles", "spending__amount_per_click"]
    assert found.to_dict() == dict(zip(names, [[7], [0.5], [2475], [2.0]], strict=True))


def test_an_answer_of_no_rows_keeps_its_columns(client: FeatureClient) -> None:
    found = client.get_online_features("fresh:clicks", entities={"customer_id": []})
    assert (found.to_dict(), list(found.to_pandas().columns), len(found.to_pandas())) == ({"clicks": []}, ["clicks"], 0)


@pytest.mark.parametrize(
    "keys",
    [
        np.array([1, LARGE]),
        pd.Series([1, LARGE]),
        pa.array([1, LARGE]),
        [np.int64(1), np.int64(LARGE)],
        (number for number in (1, LARGE)),
        pd.array([1, LARGE], dtype="Int64"),
    ],
    ids=["numpy", "pandas", "arrow", "numpy numbers", "generator", "nullable"],
)
def test_columns_of_every_make(client: FeatureClient, keys: Any) -> None:
    found = client.get_online_features(["fresh:clicks", "everything:an_int64"], entities={"customer_id": keys})
    assert found.rows == [[7, None], [0, LARGE]]


@pytest.mark.parametrize(("width", "limit"), [(np.float16, 2**11), (np.float32, 2**24)], ids=["16 bits", "32 bits"])
def test_floats_that_may_be_several_integers_are_not_sent(client: FeatureClient, width: Any, limit: int) -> None:
    for number, is_sent in ((limit - 1, True), (limit, False), (-limit, False), (limit + 2, False)):
        keys = np.array([1, number], width)
        for given in (keys, pd.Series(keys), pa.array(keys), pl.Series(keys), list(keys)):
            if is_sent:
                found = client.get_online_features(["fresh:clicks"], entities={"customer_id": given})
                assert found.rows[0] == [7]
                continue
            with pytest.raises(errors.InputError, match="may stand for several integers"):
                client.get_online_features(["fresh:clicks"], entities={"customer_id": given})
            with pytest.raises(errors.InputError, match="may stand for several integers"):
                client.push("clicks", {"customer_id": given})


def test_a_frame_of_entities_with_a_null(client: FeatureClient) -> None:
    frame = pd.DataFrame({"customer_id": pd.array([1, None], dtype="Int64")})
    assert client.get_online_features(["fresh:score"], entities=frame).statuses == [["PRESENT"], ["NOT_FOUND"]]


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"features": ["fresh:click"], "entities": {"customer_id": [1]}}, errors.NotFoundError, "clicks"),
        ({"feature_service": "model_v2", "entities": MODEL}, errors.NotFoundError, "model_v1"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": ["x"]}}, errors.EntityKeyError, "customer_id"),
        ({"features": ["fresh:clicks"], "entities": {}}, errors.EntityKeyError, "customer_id"),
        ({"features": ["clicks"], "entities": {"customer_id": [1]}}, errors.InputError, "view:feature"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": [1] * 1001}}, errors.InputError, "1000"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": ["1" * 2_000_000]}}, errors.InputError, "larger"),
        ({"entities": {"customer_id": [1]}}, errors.InputError, "either"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": "1"}}, errors.InputError, "not a list of values"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": 1}}, errors.InputError, "is int, not"),
        ({"features": ["fresh:clicks"], "entities": None}, errors.InputError, "entities is NoneType"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": [float("inf")]}}, errors.InputError, "infinite"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": [1, [float("-inf")]]}}, errors.InputError, "infin"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": [object()]}}, errors.InputError, "JSON"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": [2**70]}}, errors.EntityKeyError, "customer_id"),
    ],
)
def test_a_wrong_request_raises_what_it_raises_in_process(
    client: FeatureClient, asked: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said) as raised:
        client.get_online_features(**asked)
    assert type(raised.value) is kind


def test_details_and_request_id_come_along(client: FeatureClient) -> None:
    with pytest.raises(errors.EntityKeyError) as raised:
        client.get_online_features(["fresh:clicks"], entities={"customer_id": [1, "x"]})
    details = raised.value.details
    assert details["status"] == 422
    assert details["request_id"]
    assert len(details) > 2


OTHERS = {errors.RegistryError: errors.RegistryUnavailableError, BaseException: errors.ServerError}


@pytest.mark.parametrize("kind", _ANSWERS, ids=lambda kind: kind.__name__)
def test_all_that_the_server_answers_is_raised_as_what_it_was(kind: type[BaseException]) -> None:
    answer = error_answer(kind("what was wrong"), "id-1")
    told = json.loads(answer.body)["error"]
    raised = raised_by(canned(answer.status, answer.body))
    assert type(raised) is OTHERS.get(kind, kind)
    assert raised.message == told["message"]
    assert raised.details == {**told["details"], "status": answer.status}


def test_tokens(tmp_path: Path) -> None:
    # A repo of its own: a server that is given a token closes all servers of its repo, those of other tests too.
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace(), token=TOKEN) as server:
        url = str(server.base_url)
        with FeatureClient(url, TOKEN, timeout_s=20) as client:
            assert client.get_online_features(["fresh:clicks"], entities={"customer_id": [1]}).rows == [[7]]
        for token in (None, "t" * 40):
            with FeatureClient(url, token, timeout_s=20) as client:
                assert client.ready()
                with pytest.raises(errors.AuthError, match="valid token") as raised:
                    client.get_online_features(["fresh:clicks"], entities={"customer_id": [1]})
                assert raised.value.status == 401
                assert str(token) not in "".join(traceback.format_exception(raised.value)) + repr(client)


PUSHED = """
from featurestore import PushSource

clicks = PushSource("clicks", batch_source=orders)
pushed = FeatureView(
    "pushed", entities=[customer], source=clicks, schema=[Field("count", Int64), Field("seen", Timestamp)]
)
"""


@pytest.fixture
def push_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("support.serving.FEATURES", FEATURES + PUSHED)
    with serving_here(Project(tmp_path / "repo").workspace()) as server:
        yield str(server.base_url)


def in_numpy(rows: dict[str, list[Any]]) -> dict[str, Any]:
    instants = np.array([at.replace(tzinfo=None) for at in rows["seen"]], "datetime64[ns]")
    return {**rows, "customer_id": np.array(rows["customer_id"]), "ordered_at": instants, "seen": list(instants)}


@pytest.mark.parametrize("make", [dict, pd.DataFrame, pa.table, in_numpy], ids=["lists", "pandas", "arrow", "numpy"])
def test_pushed_rows_are_read_back(push_url: str, make: Callable[[Any], Any]) -> None:
    at = [datetime(2026, 5, 4, 3, 2, 1, 123456, UTC), datetime(2025, 1, 1, tzinfo=UTC)]
    rows = {"customer_id": [1, LARGE], "ordered_at": at, "count": [-LARGE, None], "seen": at}
    frame = make(rows)
    if make is pd.DataFrame:
        frame["count"] = pd.array([-LARGE, None], dtype="Int64")
    if make is pa.table:
        frame = dict(zip(frame.column_names, frame.columns, strict=True))
    with FeatureClient(push_url, timeout_s=60) as client:
        told = client.push("clicks", frame)
        assert told["rows"] == 2
        assert told["views"]["pushed"]["online"]["written"] == 2
        assert told["views"]["pushed"]["offline"]["rows"] == 2
        found = client.get_online_features(["pushed:count", "pushed:seen"], entities={"customer_id": [1, LARGE]})
        assert found.rows == [[-LARGE, "2026-05-04T03:02:01.123456Z"], [None, "2025-01-01T00:00:00.000000Z"]]
        again = client.push("clicks", frame, to="online")
        assert again["views"]["pushed"]["offline"] is None
        with pytest.raises(errors.NotFoundError, match="clicks"):
            client.push("click", frame)
        nothing = client.push("clicks", [])  # no rows, as in process
        assert (nothing["rows"], nothing["views"]["pushed"]["online"]["written"]) == (0, 0)
        with pytest.raises(errors.InputError, match="no column"):
            client.push("clicks", {})
        with pytest.raises(errors.ValueTypeError, match="count"):
            client.push("clicks", {**rows, "count": [1, "many"]})


FINE = 1_500_000_000_000_000_001  # nanoseconds


@pytest.mark.parametrize("instants", [[pd.Timestamp(FINE)], np.array([FINE], "M8[ns]"), [np.datetime64(FINE, "ns")]])
def test_instants_that_the_server_would_cut_are_refused(client: FeatureClient, instants: Any) -> None:
    with pytest.raises(errors.InputError, match="finer than a microsecond"):
        client.push("clicks", {"at": instants})


def test_what_is_no_time_is_null(push_url: str) -> None:
    with FeatureClient(push_url, timeout_s=60) as client:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        seen = [np.datetime64("NaT"), pd.NaT, pd.NA, None]
        client.push("clicks", {"customer_id": [1, 2, 3, 4], "ordered_at": [at] * 4, "count": [0] * 4, "seen": seen})
        found = client.get_online_features(["pushed:seen"], entities={"customer_id": [1, 2, 3, 4]})
        assert found.statuses == [["NULL_VALUE"]] * 4
        with pytest.raises(errors.InputError):
            client.push("clicks", {"customer_id": [1], "ordered_at": np.array(["NaT"], "M8[ns]"), "count": [0]})


def test_a_store_that_is_down_and_comes_back(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> None:
    redis = start_redis()
    project = small_project(tmp_path / "repo", system_clock(), online_url=redis.url)
    with serving_here(project.workspace()) as server, FeatureClient(str(server.base_url), timeout_s=20) as client:
        assert client.ready()
        redis.kill()
        with pytest.raises(errors.OnlineStoreUnavailableError) as raised:
            client.get_online_features(["fresh:clicks"], entities={"customer_id": [1]})
        assert raised.value.details["status"] == 503
        assert not client.ready()


@pytest.mark.parametrize(
    "make",
    [
        pd.DataFrame,
        pl.DataFrame,
        pa.table,
        lambda columns: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    ],
)
def test_entities_in_every_form(client: FeatureClient, make: Callable[[Any], Any]) -> None:
    entities = make({"customer_id": [1, 9]})
    assert client.get_online_features(["fresh:clicks"], entities=entities).rows == [[7], [0]]


def test_days_of_numpy_are_dates(project: Project, client: FeatureClient) -> None:
    rest = {"open": True, "raw": b"x", "number": 1}
    project.put("days", {"day": date(2024, 2, 29), **rest}, {"visitors": 5}, event_us=system_clock())
    asked = {"day": np.array(["2024-02-29"], dtype="datetime64[D]"), "open": [True], "raw": ["eA=="], "number": [1]}
    assert client.get_online_features(["days:visitors"], entities=asked).rows == [[5]]


@pytest.mark.parametrize("token", ["", " ", "fs_secret\x00", "fs secret", "fs_sécret", "fs_secret\nx: y", 7])
def test_what_is_no_token_is_refused_unsaid(token: Any) -> None:
    with pytest.raises(errors.InputError) as raised:
        FeatureClient("http://127.0.0.1:1", token)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["", None, 7, "127.0.0.1:7711", "ftp://host", "http://", "http://[::1", "http://a:b:c"])
def test_what_is_no_url_is_refused(url: Any) -> None:
    with pytest.raises(errors.InputError, match="URL"):
        FeatureClient(url)


def test_no_message_holds_the_password_of_the_url() -> None:
    with (
        FeatureClient("http://user:hunter2@127.0.0.1:1") as client,
        pytest.raises(errors.ServerUnavailableError) as raised,
    ):
        client.get_online_features(["v:f"], entities={"k": [1]})
    assert str(raised.value).startswith("http://127.0.0.1:1 cannot be reached")
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))


def test_an_answer_that_cannot_be_decoded_is_an_error() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-encoding", "gzip")
        request.send_header("content-length", "4")
        request.end_headers()
        request.wfile.write(b"none")

    raised = raised_by(answer)
    assert type(raised) is errors.ServerError
    assert "cannot be decoded" in str(raised)


def test_nobody_there() -> None:
    with answering(canned(200, b"")) as server:
        port = server.server_address[1]
    with FeatureClient(f"http://127.0.0.1:{port}", "s" * 40) as client:
        assert not client.ready()
        with pytest.raises(errors.ServerUnavailableError, match="cannot be reached") as raised:
            client.get_online_features(["a:b"], entities={})
    assert "s" * 40 not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("stuck", ["before the answer", "in the middle", "drop by drop"])
def test_the_deadline_holds(stuck: str) -> None:
    ended = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if stuck != "before the answer":
            handler.send_response(200)
            handler.send_header("content-length", "1000")
            handler.end_headers()
            handler.wfile.flush()
        for _ in range(1000):
            if ended.wait(0.05) or stuck == "drop by drop":
                try:
                    handler.wfile.write(b" ")
                except OSError:
                    return
            if ended.is_set():
                return

    with answering(answer) as server, client_of(server, timeout_s=0.3) as client:
        started = time.monotonic()
        with pytest.raises(errors.ServerUnavailableError, match=r"did not answer within 0\.3 s"):
            client.get_online_features(["a:b"], entities={})
        assert 0.25 < time.monotonic() - started < 3
        ended.set()


def test_a_push_may_take_longer_than_a_read() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.4)
        canned(200, b'{"rows": 1}')(handler)

    with answering(answer) as server, client_of(server, timeout_s=0.1) as client:
        assert client.push("clicks", {"k": [1]}) == {"rows": 1}
        with pytest.raises(errors.ServerUnavailableError, match=r"within 0\.1 s"):
            client.get_online_features(["a:b"], entities={})
        with pytest.raises(errors.ServerUnavailableError, match=r"within 0\.2 s"):
            client.push("clicks", {"k": [1]}, timeout_s=0.2)


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (502, b"<html>nginx secret</html>", errors.ServerUnavailableError, "502"),
        (504, b"", errors.ServerUnavailableError, "504"),
        (503, b'{"error": {"type": "overloaded", "message": "Busy."}}', errors.ServerUnavailableError, "Busy"),
        (408, b"{}", errors.ServerUnavailableError, "408"),
        (500, b'{"error": {"type": "internal_error", "message": "Bad."}}', errors.ServerError, "Bad"),
        (301, b"", errors.ServerError, "301"),
        (404, b"not here", errors.ServerError, "404"),
        (405, b'{"error": {"type": "method_not_allowed", "message": "No."}}', errors.ServerError, "No"),
        (400, b'{"error": {"type": "new_kind", "message": "Wrong."}}', errors.InputError, "Wrong"),
        (200, b"<html>welcome</html>", errors.ServerError, "feature server"),
        (200, b'{"names": 1}', errors.ServerError, "feature server"),
        (200, b'{"names": [], "rows": []}', errors.ServerError, "status"),
    ],
)
def test_what_is_no_answer_is_an_error(status: int, body: bytes, kind: type[Exception], said: str) -> None:
    raised = raised_by(canned(status, body, location="/elsewhere"))
    assert type(raised) is kind
    assert said in str(raised)
    assert "secret" not in str(raised)


def test_calls_share_connections_and_keep_their_answers_apart(url: str) -> None:
    body = b'{"names": ["x"], "rows": [[1]], "status": [["PRESENT"]]}'
    with answering(canned(200, body)) as server, client_of(server, timeout_s=20) as client:
        for _ in range(20):
            assert client.get_online_features(["a:x"], entities={"k": [1]}).rows == [[1]]
        assert server.connections == 1
    names = ["fresh:clicks", "everything:an_int64"]
    expected = {1: [7, None], 3: [3, None], LARGE: [0, LARGE]}
    with FeatureClient(url, timeout_s=20) as client, ThreadPoolExecutor(8) as pool:

        def read(key: int) -> tuple[int, list[Any]]:
            return key, client.get_online_features(names, entities={"customer_id": [key]}).rows[0]

        for key, row in pool.map(read, list(expected) * 40):
            assert row == expected[key]


LOADED = """
import sys, httpx, msgspec
before = set(sys.modules)
import featurestore.client
from featurestore.client import FeatureClient, OnlineRows
new = {name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names}
print(sorted(new))
"""


def test_importing_it_loads_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    ours = [
        "featurestore",
        *(
            f"featurestore.{name}"
            for name in ("client", "client.failures", "client.predictions", "errors", "statuses", "tables")
        ),
    ]
    assert eval(done.stdout) == [*ours, "featurestore_registry", "featurestore_registry.errors"]


def test_without_httpx_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "featurestore.client")
    with pytest.raises(ImportError, match=r"needs httpx: run pip install '\.\[client\]' in a checkout"):
        importlib.import_module("featurestore.client")
