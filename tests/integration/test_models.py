"""Models in MLflow: what their runs say of training sets, what is served to them, and who reads which service.

Against a real MLflow server. No model is loaded anywhere, so the models here are JSON.
"""

from __future__ import annotations

import gc
import json
import math
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from support.catalog_server import serving_catalog
from support.clock import ManualClock
from support.command_line import CommandLine
from support.mlflow_server import MlflowServer
from support.serving import NO_TLS

from featurestore import FeatureStore, serving
from featurestore.errors import FeatureStoreError, InputError, ModelError, NotFoundError, TrackerError, TrainingSetError
from featurestore.ledger.consumers import list_consumers
from featurestore.tracking import mlflow as tracking
from featurestore.training import TrainingSet

BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
NOW = BEGIN + timedelta(days=3)
FEATURES = """
from datetime import timedelta

from featurestore import (
    Aggregation, Entity, FeatureService, FeatureView, Field, ParquetSource, RequestSource, on_demand_feature_view,
)
from featurestore.types import Float64, Int32, Int64, String

driver = Entity("driver", join_keys={"driver": Int64})
source = ParquetSource("stats_file", "stats.parquet", "at", "known_at")
stats = FeatureView(
    "stats", entities=[driver], source=source, ttl=timedelta(days=2),
    schema=[Field("trips", Int32), Field("rating", Float64), Field("city", String)],
)
recent = FeatureView(
    "recent", entities=[driver], source=source, schema=[Field("trips", Int32)],
    aggregations=[Aggregation("trips", "sum", windows=[timedelta(days=1)])],
)
trip = RequestSource("trip", [Field("km", Float64)])


@on_demand_feature_view(sources=[stats[["trips"]], trip], schema=[Field("km_per_trip", Float64)])
def length(inputs):
    return {"km_per_trip": [k / n if n and k is not None else None for k, n in zip(inputs["km"], inputs["trips"])]}


trips_v1 = FeatureService("trips_v1", features=[stats[["rating", "trips"]], recent, length], owner="ada")
others = FeatureService("others", features=[stats[["city"]]])
"""
NAMES = ("stats__rating", "stats__trips", "recent__trips_sum_1d", "length__km_per_trip")


class World:
    """A project with data, and a clock that stands still."""

    def __init__(self, root: Path, features: str = FEATURES, project: str = "shop") -> None:
        self.root = root
        root.mkdir()
        (root / "feature_store.yaml").write_text(f"project: {project}\nserver: {{refresh: 1ms}}\n")
        rows = [
            (driver, BEGIN + timedelta(hours=h), h % 5 + driver, 4 + h / 100) for driver in (1, 2) for h in range(72)
        ]
        drivers, times, trips, ratings = map(list, zip(*rows, strict=True))
        columns = {
            "driver": pa.array(drivers, pa.int64()),
            "at": pa.array(times, pa.timestamp("us", "UTC")),
            "known_at": pa.array(times, pa.timestamp("us", "UTC")),
            "trips": pa.array(trips, pa.int32()),
            "rating": pa.array(ratings, pa.float64()),
            "city": ["Bern"] * len(rows),
        }
        pq.write_table(pa.table(columns), root / "stats.parquet")
        self.rows = rows
        self.store = FeatureStore(root, clock=ManualClock(NOW))
        self.apply(features)
        self.store.materialize_incremental()

    def apply(self, features: str, **allowed: bool) -> None:
        (self.root / "features.py").write_text(features)
        self.store.apply(**allowed)

    def training(self, **more: Any) -> TrainingSet:
        return self.store.get_historical_features(frame(), "trips_v1", full_feature_names=True, **more)

    def newest(self, driver: int) -> list[Any]:
        """Return what is online, by hand: rating, trips, trips of the last day, kilometres per trip."""
        *_, last = (row for row in self.rows if row[0] == driver)
        day = [row[2] for row in self.rows if row[0] == driver and NOW - timedelta(days=1) < row[1] <= NOW]
        return [last[3], last[2], sum(day), 10.0 / last[2]]


def frame() -> pd.DataFrame:
    times = [BEGIN + timedelta(hours=h, minutes=30) for h in range(20, 40)]
    return pd.DataFrame(
        {"driver": [1, 2] * 10, "event_timestamp": times, "km": [3.0] * 20, "tipped": [True, False, False, True] * 5}
    )


def refused(work: Callable[[], Any], error: type[FeatureStoreError], *texts: str) -> None:
    with pytest.raises(error) as caught:
        work()
    told = f"{caught.value.message} {caught.value.hint}"
    for text in texts:
        assert text in told, told
    assert "Traceback" not in told


@pytest.fixture(autouse=True)
def _mlflow_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    with MlflowServer(folder) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.url)
        yield found
        for each in gc.get_objects():  # MLflow keeps its connections until the process ends, and pytest complains
            if isinstance(each, requests.Session):
                each.close()


class Mlflow:
    """The server as its own REST interface shows it, and models in it."""

    def __init__(self, server: MlflowServer) -> None:
        import mlflow

        self.mlflow, self.client = mlflow, mlflow.MlflowClient()
        self._url = f"{server.url}/api/2.0"

    def get(self, path: str, **asked: str) -> Any:
        return httpx.get(f"{self._url}{path}", params=asked, verify=NO_TLS).raise_for_status().json()

    def train(self, training: TrainingSet | None, name: str) -> tuple[str, str]:
        """Log a model as people do, but for its form, and return its run and version."""
        with self.mlflow.start_run() as run:
            if training is not None:
                assert training.log_to_mlflow() == run.info.run_id
            self.client.log_dict(run.info.run_id, {"weights": [1, 2]}, "model/model.json")
        return run.info.run_id, self.register(name, run.info.run_id)

    def register(self, name: str, run_id: str | None) -> str:
        if name not in [each.name for each in self.client.search_registered_models()]:
            self.client.create_registered_model(name)
        source = f"mlflow-artifacts:/0/{run_id}/artifacts/model" if run_id else "s3://elsewhere/model"
        made = self.client.create_model_version(name, source, run_id=run_id, await_creation_for=0)
        return str(made.version)


@pytest.mark.slow(20)
def test_a_model_from_its_training_to_its_serving(
    tmp_path: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path / "shop")  # the server starts meanwhile
    saved = world.training().save("march")
    server.wait()
    mlflow = Mlflow(server)
    run_id, version = mlflow.train(saved, "delays")
    mlflow.client.set_registered_model_alias("delays", "champion", version)
    its_run_says(mlflow, run_id, saved, world)
    runs_take_one_set(mlflow, run_id, world)
    it_is_a_consumer(world)
    what_it_was_trained_with_is_served(world, run_id, saved)
    what_names_nothing_is_refused(mlflow, world, CommandLine(world.root, capsys))
    another_definition_is_refused(world)
    other_projects_are_refused(world, tmp_path)


def its_run_says(mlflow: Mlflow, run_id: str, training: TrainingSet, world: World) -> None:
    run = mlflow.get("/mlflow/runs/get", run_id=run_id)["run"]
    (given,) = run["inputs"]["dataset_inputs"]
    assert given["dataset"]["digest"] == training.id[:32]
    assert given["dataset"]["name"] == "shop.trips_v1.march"
    assert {tag["key"]: tag["value"] for tag in given["tags"]} == {
        "mlflow.data.context": "training", "featurestore.training_set": training.id
    }  # fmt: skip
    assert json.loads(given["dataset"]["profile"]) == {"num_rows": 20, "num_elements": 160}
    columns = {each["name"]: each["type"] for each in json.loads(given["dataset"]["schema"])["mlflow_colspec"]}
    assert columns == {
        "driver": "long", "event_timestamp": "datetime", "km": "double", "tipped": "boolean", "stats__rating": "double",
        "stats__trips": "integer", "recent__trips_sum_1d": "long", "length__km_per_trip": "double",
    }  # fmt: skip
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"] if tag["key"].startswith("featurestore.")}
    assert tags == {name: str(value) for name, value in training.facts().items()}
    chain = world.store.workspace.registry.definitions.chain("shop")
    assert tags["featurestore.service"] == "trips_v1"
    assert (tags["featurestore.revision"], tags["featurestore.revision_hash"]) == ("1", chain.head)
    assert (tags["featurestore.project_id"], tags["featurestore.rows"]) == (chain.identity, "20")

    def document(name: str) -> Any:
        return json.loads(Path(mlflow.client.download_artifacts(run_id, f"featurestore/{name}")).read_text())

    assert document("certificate.json") == training.certificate.to_dict()
    schema = document("schema.json")
    assert [each["name"] for each in schema["columns"] if each["role"] == "feature"] == list(NAMES)
    assert [each["name"] for each in schema["columns"] if each["role"] == "own"] == list(frame().columns)
    assert "stats.parquet" not in json.dumps([run, schema])  # where data lies is nothing for a tracker


def runs_take_one_set(mlflow: Mlflow, run_id: str, world: World) -> None:
    training = world.training()
    before = mlflow.get("/mlflow/runs/get", run_id=run_id)["run"]
    assert training.log_to_mlflow(run_id=run_id) == run_id  # the same set once more
    assert mlflow.get("/mlflow/runs/get", run_id=run_id)["run"] == before
    other = world.store.get_historical_features(frame(), "others")
    refused(
        lambda: other.log_to_mlflow(run_id=run_id), InputError, f"Run {run_id} has another training set", "context="
    )
    assert mlflow.get("/mlflow/runs/get", run_id=run_id)["run"] == before
    other.log_to_mlflow(run_id=run_id, context="test")
    after = mlflow.get("/mlflow/runs/get", run_id=run_id)["run"]
    assert after["data"] == before["data"]
    assert sorted(each["dataset"]["digest"] for each in after["inputs"]["dataset_inputs"]) == sorted(
        [training.id[:32], other.id[:32]]
    )
    long, most = mlflow.client.create_run("0").info.run_id, 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "MOST_TAG", most)
        training.log_to_mlflow(run_id=long)
    tags = mlflow.client.get_run(long).data.tags
    assert tags["featurestore.training_set"] == training.id[:most]
    refused(training.log_to_mlflow, InputError, "No MLflow run is active", "mlflow.start_run()")
    refused(lambda: training.log_to_mlflow(run_id="0" * 32), NotFoundError, "no run '00000")
    refused(lambda: training.log_to_mlflow(run_id="../../etc"), InputError, "../../etc")
    span = world.store.get_historical_features(None, "stats:rating", start=BEGIN, end=NOW)
    refused(lambda: span.log_to_mlflow(run_id=run_id), TrainingSetError, "cannot be logged")


def it_is_a_consumer(world: World) -> None:
    store = world.store
    first = store.register_model("models:/delays@champion", owner="ada")
    assert (first.name, first.services, first.owner) == ("mlflow/delays@champion", ("trips_v1",), "ada")
    assert "version 1 in MLflow, trained at revision 1" in first.description
    entries = lambda: store.workspace.ledger.scan("shop", "consumer", key=first.name)  # noqa: E731
    assert store.register_model("models:/delays@champion") == first  # who asks for it stays
    assert len(entries()) == 1
    store.register_model("models:/delays/1")
    assert [each.name for each in list_consumers(store.workspace.ledger, "shop")] == [
        "mlflow/delays/1", "mlflow/delays@champion"
    ]  # fmt: skip
    assert "mlflow/delays@champion" in str(store.lineage("stats:rating"))
    assert "trips_v1" in str(store.lineage("mlflow/delays/1"))
    (world.root / "features.py").write_text(FEATURES.replace('[["rating", "trips"]]', '[["rating"]]'))
    assert "read by: mlflow/delays/1, mlflow/delays@champion (ada)" in str(store.plan())
    (world.root / "features.py").write_text(FEATURES)
    with serving_catalog(store.workspace.registry) as url:
        listed = httpx.get(f"{url}/p/shop/consumer", verify=NO_TLS).text
        (target,) = re.findall(r'href="([^"]*consumer/[^"]*delays[^"]*1)"', listed)
        assert "trained at revision 1" in httpx.get(urljoin(url, target), verify=NO_TLS).text


def what_it_was_trained_with_is_served(world: World, run_id: str, training: TrainingSet) -> None:
    asked = {"driver": [2, 1], "km": [10.0, 10.0]}
    for uri in ("models:/delays@champion", "models:/delays/1", f"runs:/{run_id}", f"runs:/{run_id}/model"):
        found = world.store.features_for(uri)
        assert (found.model, found.run_id, found.training_set) == (uri, run_id, training.id)
        assert (found.names, found.services, found.revision) == (NAMES, ("trips_v1",), 1)
        assert found.version == ("" if uri.startswith("runs:") else "1")
        answer = found.get_online_features(asked)
        assert answer.names == NAMES
        assert list(map(list, zip(*(answer.to_dict()[name] for name in NAMES), strict=True))) == [
            world.newest(2), world.newest(1)
        ]  # fmt: skip
    again = found.get_historical_features(frame())
    assert again.features == NAMES
    assert again.to_pandas().equals(training.to_pandas())
    assert again.id == training.id


def what_names_nothing_is_refused(mlflow: Mlflow, world: World, fs: CommandLine) -> None:
    ask, register = world.store.features_for, world.store.register_model
    refused(lambda: ask("models:/delays@champoin"), NotFoundError, "no alias 'champoin'", "champion")
    refused(lambda: ask("models:/dealys@champion"), NotFoundError, "no registered model 'dealys'", "delays")
    refused(lambda: ask("models:/delays/7"), NotFoundError, "'delays' has no version 7")
    refused(lambda: ask(f"runs:/{'a' * 32}"), NotFoundError, f"no run '{'a' * 32}'")
    run_id, version = mlflow.train(None, "bare")
    for work in (ask, register):
        refused(
            lambda work=work: work(f"models:/bare/{version}"),
            ModelError,
            "not trained with a logged training set",
            run_id,
        )
    mlflow.register("bare", None)
    refused(lambda: ask("models:/bare/2"), ModelError, "Version 2 of model 'bare' names no run")
    # As log_model(registered_model_name=) does it: the version names a logged model, and that one its run.
    logged = mlflow.client.create_logged_model("0", source_run_id=run_id)
    mlflow.client.create_model_version(
        "bare", f"models:/{logged.model_id}", model_id=logged.model_id, await_creation_for=0
    )
    refused(lambda: ask("models:/bare/3"), ModelError, "not trained with a logged training set", run_id)
    refused(lambda: ask(f"models:/{logged.model_id}"), ModelError, "not trained with a logged training set", run_id)
    refused(lambda: ask(f"models:/m-{'a' * 32}"), NotFoundError, f"no logged model 'm-{'a' * 32}'")
    refused(lambda: register(f"models:/{logged.model_id}"), ModelError, "not trained with")
    refused(lambda: register(f"runs:/{run_id}"), ModelError, "not trained with")
    # Others train without us, and an alias may name such a version.
    mlflow.client.set_registered_model_alias("bare", "champion", "2")
    mlflow.client.set_registered_model_alias("delays", "shadow", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_PAGE", 1)  # the models are on more pages than one
        assert [each["name"] for each in fs.json("consumer", "models")] == [
            "mlflow/delays@champion",
            "mlflow/delays@shadow",
        ]
    assert "mlflow/delays@champion (ada) reads trips_v1" in fs("consumer", "models", "models:/delays@champion")
    assert "mlflow/delays@shadow is forgotten" in fs("consumer", "remove", "mlflow/delays@shadow")
    assert "no registered model 'dealys'" in fs("consumer", "models", "models:/dealys/1", expect=1)
    listed = world.store.get_historical_features(frame(), ["stats:rating", "stats:city"])
    _, version = mlflow.train(listed, "<b>list")
    refused(lambda: register("models:/<b>list/1"), ModelError, "was trained with a list of features", "FeatureService")
    found = ask(f"models:/<b>list/{version}")
    assert (found.names, found.services) == (("rating", "city"), ())
    assert found.get_online_features({"driver": [1]}).to_dict() == {"driver": [1], "rating": [4.71], "city": ["Bern"]}


CHANGES = {
    "ttl of stats__rating: '2 days' -> '1 day'": ("ttl=timedelta(days=2)", "ttl=timedelta(days=1)"),
    "default of stats__rating: none -> 0.0": ('Field("rating", Float64)', 'Field("rating", Float64, default=0.0)'),
    "type of stats__trips: Int32 -> Int64": ('[Field("trips", Int32), ', '[Field("trips", Int64), '),
    "code of length__km_per_trip: ": ("k / n if n", "n / k if n"),
    "has no feature 'rating'": (', Field("rating", Float64)', ""),
}  # fmt: skip


def another_definition_is_refused(world: World) -> None:
    found = world.store.features_for("models:/delays/1")
    asked = {"driver": [1], "km": [10.0]}

    def served() -> list[Any]:
        answer = found.get_online_features(asked)
        return [answer.to_dict()[name][0] for name in NAMES]

    def changed(old: str, new: str) -> str:
        assert old in FEATURES
        made = FEATURES.replace(old, new)
        return made.replace('"rating", "trips"', '"trips"') if '"rating"' not in new and "rating" in old else made

    same = world.newest(1)
    # What says nothing about values, and what is another feature.
    world.apply(FEATURES.replace('owner="ada"', 'owner="bob", description="of bob"'))
    assert served() == same
    world.apply(FEATURES.replace("recent, length]", "recent, length, stats[['city']].with_name('town')]"))
    assert served() == same
    for told, (old, new) in CHANGES.items():
        world.apply(changed(old, new), allow_breaking=True)
        for work in (
            lambda: world.store.features_for("models:/delays@champion"),
            lambda: found.get_online_features(asked),
            lambda: found.get_historical_features(frame()),
        ):
            refused(work, ModelError, told, "trained with 'trips_v1' at revision 1", "Train it again")
        world.apply(FEATURES, allow_breaking=True)
    # The view has other generations now, and its definition is the one of then.
    world.store.materialize_incremental()
    assert served() == same
    # Another code is applied between the look at the definitions and the answer.
    read = serving.get_online_features

    def applied_first(*arguments: Any, **more: Any) -> Any:
        world.apply(changed("k / n if n", "k * n if n"))
        return read(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "get_online_features", applied_first)
        refused(lambda: found.get_online_features(asked), ModelError, "code of length__km_per_trip")
    world.apply(FEATURES)


def other_projects_are_refused(world: World, tmp_path: Path) -> None:
    for name, told in (("other", "another project: 'shop', not of 'other' here"), ("shop", "of another registry")):
        # Of equal definitions, applied by the same person in the same instant, the project would be the same.
        another = World(tmp_path / f"another_{name}", FEATURES.replace("ada", name), project=name)
        for work in (another.store.features_for, another.store.register_model):
            refused(lambda work=work: work("models:/delays/1"), ModelError, told)


@pytest.mark.parametrize(
    "uri",
    [
        "", "delays", "models:/", "models:/delays", "models:/delays/", "models:/delays/latest", "models:/delays/0",
        "models:/delays@", "models:/delays@a/b", "models:/a/b/1", "models:/../1/2", "models:/de\nlays/1", "runs:/",
        "runs:/../etc/passwd", "runs:/a b", "http://example.org/m", "models:/delays@champion?x=1", None, 3,
        "models:/m-1", f"models:/m-{'g' * 32}",
    ],
)  # fmt: skip
def test_texts_that_name_no_model(uri: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_client", lambda: pytest.fail("MLflow was asked"))
    refused(lambda: tracking.read_run(uri), InputError, repr(uri), "models:/NAME@ALIAS")


def test_mlflow_is_away_or_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracking, "_PROBE_S", 0.2)
    begin_s = time.monotonic()
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen()
        at = f"127.0.0.1:{hung.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:secret@{at}")
        refused(lambda: tracking.read_run("models:/delays/1"), TrackerError, f"MLflow does not answer at http://{at} (")
    with pytest.raises(TrackerError) as caught:
        tracking.read_run("models:/delays/1")
    assert "secret" not in str(caught.value)
    assert time.monotonic() - begin_s < 60  # MLflow itself would try for minutes
    # Without a server MLflow would make a file here.
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    refused(
        lambda: tracking.read_run("models:/delays/1"), TrackerError, "No MLflow server is named", "MLFLOW_TRACKING_URI"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_the_url_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answers_and_breaks_off() -> None:
            for answer in (b"HTTP/1.0 200 OK\r\n\r\n", b""):
                with listening.accept()[0] as connection:
                    connection.recv(65_536)
                    connection.sendall(answer)

        thread = threading.Thread(target=answers_and_breaks_off)
        thread.start()
        port = listening.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://zelda:pw@ssWORT@127.0.0.1:{port}")
        with pytest.raises(TrackerError, match=f"MLflow failed: .*http://127.0.0.1:{port}/") as broken:
            tracking.read_run("runs:/abc")
        thread.join()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://zelda:pw/ssWORT@127.0.0.1:1")
    with pytest.raises(TrackerError, match="MLFLOW_TRACKING_URI is no URL") as unreadable:
        tracking.read_run("runs:/abc")
    for caught in (broken, unreadable):
        told = f"{caught.value} {caught.value.details} {''.join(traceback.format_exception(caught.value))}"
        assert "ssWORT" not in told, told
        assert "zelda" not in told, told


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = World(tmp_path / "shop").store
    monkeypatch.setitem(sys.modules, "mlflow", None)
    training = store.get_historical_features(frame(), "trips_v1")
    for work in (
        lambda: store.features_for("models:/delays/1"),
        lambda: store.register_model("models:/delays/1"),
        lambda: training.log_to_mlflow(run_id="a" * 32),
    ):
        refused(work, TrackerError, "pip install '.[mlflow]'")
    assert training.facts()["featurestore.rows"] == 20  # which needs nothing


def test_an_id_is_that_of_rows_columns_and_definitions(tmp_path: Path) -> None:
    world = World(tmp_path / "shop")
    store = world.store

    def id_of(entity_df: Any = None, features: Any = "trips_v1", **more: Any) -> str:
        given = frame() if entity_df is None else entity_df
        return store.get_historical_features(given, features, **more).id

    first = id_of()
    assert len(first) == 64
    assert first == id_of() == id_of(pl.from_pandas(frame())) == id_of(pa.Table.from_pandas(frame()))
    world.apply(FEATURES.replace('owner="ada"', 'owner="bob"'))
    assert id_of() == first
    # Libraries keep equal values in other types.
    day, plain = BEGIN.date(), pa.Table.from_pandas(frame())
    alike: list[tuple[list[Any], list[pa.DataType]]] = [
        ([BEGIN, None], [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in ("UTC", "+01:00")]),
        ([day, None], [pa.date32(), pa.date64()]),
        ([b"a", None], [pa.binary(), pa.large_binary()]),
        ([[1], None], [pa.list_(pa.int64()), pa.large_list(pa.int64())]),
        ([[BEGIN], []], [pa.list_(pa.timestamp("us")), pa.large_list(pa.timestamp("ns"))]),
    ]
    ids = [
        {id_of(plain.append_column("more", pa.array(values * 10, kind))) for kind in kinds} for values, kinds in alike
    ]
    ids.append({id_of(plain.append_column("more", pa.array([1.5, none] * 10))) for none in (None, math.nan)})
    fine = pa.array([1_709_251_200_000_000_001, None] * 10, pa.timestamp("ns", "UTC"))  # a nanosecond after BEGIN
    ids.append({id_of(plain.append_column("more", fine))})
    assert [len(each) for each in ids] == [1] * 7
    assert len({first, *set[str]().union(*ids)}) == 8
    texts = frame().assign(tipped=frame()["tipped"].astype(str))
    assert id_of(texts) == id_of(pl.from_pandas(texts)) == id_of(texts.astype({"tipped": "category"})) != first
    others = [
        id_of(frame().assign(tipped=True)),
        id_of(frame().rename(columns={"tipped": "was_tipped"})),
        id_of(frame().iloc[::-1]),
        id_of(frame().head(19)),
        id_of(full_feature_names=True),
        id_of(features=["stats:rating"]),
        id_of(frame().assign(tipped=[timedelta(seconds=n) for n in range(20)])),
    ]
    world.apply(FEATURES.replace("ttl=timedelta(days=2)", "ttl=timedelta(days=3)"))  # of equal rows
    others.append(id_of())
    assert len({first, *others}) == len(others) + 1
    training = store.get_historical_features(frame(), "trips_v1")
    assert training.save("kept").id == store.get_training_set("kept").id == training.id
    facts = store.get_training_set("kept").facts()
    assert (facts["featurestore.service"], facts["featurestore.saved_as"]) == ("trips_v1", "kept")
    assert {type(value) for value in facts.values()} == {str, int}
    direct = store.get_historical_features(frame(), "trips_v1", direct=True)
    assert direct.facts()["featurestore.direct"] == "true"
