"""Runs in the environment with Feast: reads a server by Feast's client and prints what it got as JSON."""

import json
import sys
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.online_stores.remote import RemoteOnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.types import Array, Bool, Float64, Int32, Int64, String, UnixTimestamp

repo = Path(sys.argv[1])
settings = json.loads((repo / "feature_store.yaml").read_text())

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
dest = Entity(name="dest", join_keys=["dest"], value_type=ValueType.STRING)
source = FileSource(name="orders", path="orders.parquet", timestamp_field="ordered_at")
fresh = FeatureView(
    name="fresh",
    entities=[customer],
    ttl=timedelta(hours=1),
    schema=[
        Field(name="customer_id", dtype=Int64),
        Field(name="clicks", dtype=Int64),
        Field(name="score", dtype=Float64),
    ],
    source=source,
)
routes = FeatureView(
    name="routes",
    entities=[origin, dest],
    schema=[
        Field(name="origin", dtype=String),
        Field(name="dest", dtype=String),
        Field(name="miles", dtype=Int64),
    ],
    source=source,
)
types = {
    "an_int32": Int32,
    "an_int64": Int64,
    "a_float64": Float64,
    "a_bool": Bool,
    "a_string": String,
    "an_instant": UnixTimestamp,
    "a_date": String,
    "a_decimal": String,
    "numbers": Array(Float64),
}
everything = FeatureView(
    name="everything",
    entities=[customer],
    schema=[Field(name="customer_id", dtype=Int64), *(Field(name=n, dtype=t) for n, t in types.items())],
    source=source,
)
plain = FeatureService(name="plain", features=[fresh, routes])


def store_of(changes):
    return FeatureStore(config=RepoConfig(repo_path=repo, **{**settings, **changes}))


# Feast lets a client apply definitions without its own permission checks only where no authentication is set.
applying = store_of({"auth": {"type": "no_auth"}})
applying.registry.apply_entity(customer, "shop")
applying.registry.apply_entity(origin, "shop")
applying.registry.apply_entity(dest, "shop")
for view in (fresh, routes, everything):
    applying.registry.apply_feature_view(view, "shop")
applying.registry.apply_feature_service(plain, "shop")

store = store_of({})
rows = [{"customer_id": customer_id} for customer_id in (1, 2, 3, 4)]
found = {}

answer = store.get_online_features(features=["fresh:clicks", "fresh:score"], entity_rows=rows)
found["by_references"] = answer.to_dict()
found["statuses"] = {
    name: [FieldStatus.Name(status) for status in result.statuses]
    for name, result in zip(answer.proto.metadata.feature_names.val, answer.proto.results, strict=True)
}
found["by_service"] = store.get_online_features(
    features=plain, entity_rows=[{"customer_id": 1, "origin": "JFK", "dest": "LAX"}]
).to_dict()
found["full_names"] = store.get_online_features(
    features=["fresh:score", "fresh:clicks"], entity_rows=rows[:1], full_feature_names=True
).to_dict()
found["every_type"] = store.get_online_features(
    features=[f"everything:{name}" for name in types], entity_rows=rows[:1]
).to_dict()


def plain_value(value):
    kind = value.WhichOneof("val")
    return None if kind is None else getattr(value, kind)


keys = [EntityKey(join_keys=["customer_id"], entity_values=[Value(int64_val=number)]) for number in (1, 2)]
read = RemoteOnlineStore().online_read(store.config, fresh, keys, ["clicks", "score"])
found["online_read"] = [
    [instant.isoformat(), {name: plain_value(value) for name, value in sorted(values.items())}]
    for instant, values in read
]


def status_of(call):
    try:
        call()
    except Exception as error:
        words = str(error).split()
        return next((word.strip(":,") for word in words if word.strip(":,").isdigit()), f"{type(error)}: {error}")
    return "no error"


found["unknown_feature"] = status_of(lambda: store.get_online_features(features=["fresh:clickz"], entity_rows=rows))
other = store_of({"auth": {"type": "oidc", "token": "x" * 40}})
found["wrong_token"] = status_of(lambda: other.get_online_features(features=["fresh:clicks"], entity_rows=rows))
print(json.dumps(found))
