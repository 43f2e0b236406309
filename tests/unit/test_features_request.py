"""What callers ask for, resolved against what was applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.small_project import (
    DEFINITIONS,
    airport_weather,
    carrier,
    carrier_profile,
    delay_model,
    delay_now,
    dest_is_warm,
    dest_weather,
    every_type,
    origin_weather,
    route_stats,
    small_project,
    weather,
)

from featurestore.definitions import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    ParquetSource,
    RequestSource,
    on_demand_feature_view,
)
from featurestore.errors import InputError, NotFoundError, OutputNameClashError
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, from_references, resolve
from featurestore.types import Float64, Int32, Int64, String


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    with small_project(tmp_path_factory.mktemp("project")).registry as registry:
        return Snapshot.of(registry.definitions.read("shop")).with_code(DEFINITIONS)


def names(request: FeatureRequest) -> list[str]:
    return [output.name for output in request.outputs]


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("carrier_profile:flights", ["flights"]),
        (["carrier_profile:flights", "carrier_profile:last_delay"], ["flights", "last_delay"]),
        (carrier_profile, ["last_delay", "flights"]),
        ([carrier_profile[["flights"]], airport_weather], ["flights", "temp", "sky"]),
        (("airport_weather:sky", carrier_profile["last_delay"]), ["sky", "last_delay"]),
        (delay_now, ["scaled_delay", "hour"]),
        (["delay_now:hour", "dest_is_warm:warm"], ["hour", "warm"]),
        ("delay_model", ["last_delay", "flights", "distance", "scaled_delay", "hour", "temp", "sky"]),
        (delay_model, ["last_delay", "flights", "distance", "scaled_delay", "hour", "temp", "sky"]),
        (["dest_is_warm:warm", FeatureService("s", [origin_weather["sky"]])], ["warm", "sky"]),
    ],
)  # fmt: skip
def test_outputs_are_in_the_order_asked(snapshot: Snapshot, features: Any, expected: list[str]) -> None:
    assert names(resolve(snapshot, features)) == expected


def test_full_names_tell_the_view_or_its_alias(snapshot: Snapshot) -> None:
    request = resolve(snapshot, [origin_weather[["temp"]], dest_weather, delay_now], full_feature_names=True)
    assert names(request) == [
        "origin_weather__temp",
        "dest_weather__temp",
        "dest_weather__sky",
        "delay_now__scaled_delay",
        "delay_now__hour",
    ]
    assert [dict(read.key_columns) for read in request.reads[:2]] == [{"airport": "origin"}, {"airport": "dest"}]


def test_reads_of_one_view_by_the_same_columns_are_one(snapshot: Snapshot) -> None:
    request = resolve(
        snapshot,
        ["carrier_profile:flights", delay_now, carrier_profile[["last_delay"]], dest_is_warm, dest_weather["sky"]],
    )
    assert [(read.name, read.features) for read in request.reads] == [
        ("carrier_profile", ("flights", "last_delay")),
        ("airport_weather", ("temp", "sky")),
    ]
    assert [output.read for output in request.outputs] == [0, None, None, 0, None, 1]
    assert list(request.key_types) == ["carrier", "dest"]
    assert {name: field.type for name, field in request.request_fields.items()}.keys() == {"scheduled", "factor"}


def test_inputs_of_on_demand_views_are_read_though_nobody_asked(snapshot: Snapshot) -> None:
    (read,) = resolve(snapshot, "delay_now:hour").reads
    assert (read.view.name, read.features) == ("carrier_profile", ("last_delay",))


def test_names_of_reads_never_meet(snapshot: Snapshot) -> None:
    """An on-demand input by other columns takes the view's own name, as the selection beside it does."""
    request = resolve(snapshot, [airport_weather["sky"], dest_is_warm])
    assert len({read.name for read in request.reads}) == 2
    assert request.outputs[0].alias == "airport_weather"


@pytest.mark.parametrize(
    ("features", "full", "message", "hint"),
    [
        (["carrier_profile:flights", "route_stats:flights"], False, "carrier_profile:flights and route_stats:flights",
         "full_feature_names"),
        ([origin_weather, dest_weather], False, "origin_weather:temp and dest_weather:temp", "full_feature_names"),
        (["carrier_profile:flights", carrier_profile], True, "'carrier_profile__flights'", "once"),
        ([airport_weather["sky"], airport_weather["temp"].with_join_keys({"airport": "dest"})], False,
         "airport_weather:sky and airport_weather:temp", "with_name"),
        ([airport_weather.with_name("a")["sky"], airport_weather["sky"]], False, "a:sky and airport_weather:sky",
         "full_feature_names"),
    ],
)  # fmt: skip
def test_clashing_outputs_name_both(snapshot: Snapshot, features: Any, full: bool, message: str, hint: str) -> None:
    with pytest.raises(OutputNameClashError) as caught:
        resolve(snapshot, features, full_feature_names=full)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_outputs_that_differ_only_in_case_clash(tmp_path: Path) -> None:
    from support.projects import make_workspace

    views = [
        FeatureView(name, entities=[carrier], source=weather, schema=[Field(feature, Int64)])
        for name, feature in (("lower", "age"), ("upper", "AGE"))
    ]
    with make_workspace(tmp_path, views, now_us=0).registry as registry:
        snapshot = Snapshot.of(registry.definitions.read("shop"))
    with pytest.raises(OutputNameClashError, match="lower:age and upper:AGE"):
        resolve(snapshot, views)


@pytest.mark.parametrize(
    ("features", "message", "hint"),
    [
        ("carrier_profil:flights", "no feature view 'carrier_profil'", "'carrier_profile'"),
        ("carrier_profile:fligths", "'carrier_profile' has no feature 'fligths'", "'flights'"),
        ("delay_now:hours", "'delay_now' has no feature 'hours'", "'hour'"),
        ("delay_modell", "no feature service 'delay_modell'", "'delay_model'"),
        (["carrier_profile"], "'carrier_profile' names no feature", "view:feature"),
    ],
)
def test_unknown_names_get_the_closest(snapshot: Snapshot, features: Any, message: str, hint: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(snapshot, features)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_objects_that_were_never_applied_are_unknown(snapshot: Snapshot) -> None:
    new = FeatureView("new_view", entities=[carrier], source=weather, schema=[Field("x", Int64)])

    @on_demand_feature_view(sources=[new], schema=[Field("y", Int64)])
    def doubled(inputs: Any) -> Any:
        return inputs

    for reference in (new, doubled, FeatureService("s", [new])):
        with pytest.raises(NotFoundError, match=r"new_view|doubled"):
            resolve(snapshot, reference)


def changed_profile(**values: Any) -> FeatureView:
    return carrier_profile.replaced(**values)


@on_demand_feature_view(name="dest_is_warm", sources=dest_is_warm.inputs, schema=dest_is_warm.fields, mode="pandas")
def warmer_everywhere(inputs: Any) -> Any:
    return inputs


@pytest.mark.parametrize(
    ("given", "differs", "text"),
    [
        (changed_profile(sql="SELECT * FROM flights")["flights"], "'carrier_profile' differs.* in sql", ":flights"),
        (changed_profile(ttl=None), "'carrier_profile' differs.* in ttl", "carrier_profile:last_delay"),
        (changed_profile(fields=(Field("flights", Int32),)), "'carrier_profile' differs.* in schema", ":flights"),
        (
            changed_profile(entities=(Entity("carrier", {"code": String}),), fields=None).with_join_keys({"code": "x"}),
            "Entity 'carrier' of 'carrier_profile' differs.* in join_keys",
            "carrier_profile:FEATURE",
        ),
        (
            changed_profile(sources=(ParquetSource("flights", "other.parquet", "arrived_at", "recorded_at"),)),
            "ParquetSource 'flights' of 'carrier_profile' differs.* in path",
            "carrier_profile:last_delay",
        ),
        (warmer_everywhere, "OnDemandFeatureView 'dest_is_warm' differs.* in code", "dest_is_warm:warm"),
        (FeatureService("delay_model", [carrier_profile]), "'delay_model' differs.* in features", "'delay_model'"),
        (
            FeatureService("mine", [changed_profile(ttl=None)["flights"]]),
            "'carrier_profile' of 'mine' differs.* in ttl",
            "'mine'",
        ),
    ],
)
def test_objects_that_are_not_what_is_applied_are_refused(
    snapshot: Snapshot, given: Any, differs: str, text: str
) -> None:
    with pytest.raises(InputError, match=differs) as refused:
        resolve(snapshot, [given])
    assert "revision 1" in refused.value.message
    assert "store.apply" in refused.value.hint
    assert text in refused.value.hint


def test_objects_made_again_are_what_is_applied(snapshot: Snapshot) -> None:
    described = carrier_profile.replaced(
        entities=tuple(entity.replaced(owner="ops") for entity in carrier_profile.entities),
        fields=tuple(field.replaced(description="told later") for field in carrier_profile.features),
        description="new words",
        tags={"team": "ops"},
    )
    service = FeatureService("delay_model", delay_model.features, owner="ops")
    without_schema = carrier_profile.replaced(fields=None)
    grouped = FeatureService("mine", [without_schema["flights"], delay_now])
    for found in (described, described["flights"], without_schema, service, grouped, *snapshot.list()[-8:]):
        assert resolve(snapshot, found).outputs


@pytest.mark.parametrize("features", [None, [], (), 7, [None], {"a": 1}])
def test_what_is_no_reference_is_refused(snapshot: Snapshot, features: Any) -> None:
    with pytest.raises(InputError):
        resolve(snapshot, features)


def test_an_empty_project_says_what_to_run() -> None:
    with pytest.raises(NotFoundError, match="fs apply"):
        resolve(Snapshot("empty", 0, ()), "view:feature")


def test_request_fields_of_one_name_need_one_type(tmp_path: Path) -> None:
    from support.projects import make_workspace

    def view(name: str, kind: Any) -> Any:
        source = RequestSource(f"request_{name}", [Field("x", kind)])
        return on_demand_feature_view(sources=[source], schema=[Field(f"{name}_y", kind)], name=name)(lambda i: i)

    views = [view("one", Int32), view("two", Float64)]
    with make_workspace(tmp_path, views, now_us=0).registry as registry:
        snapshot = Snapshot.of(registry.definitions.read("shop"))
    with pytest.raises(InputError, match="request field 'x' is Int32 for 'one' but Float64 for 'two'"):
        resolve(snapshot, views)


@pytest.mark.parametrize(("own", "clash"), [(["flights"], True), (["FLIGHTS"], True), (["carrier", "label"], False)])
def test_own_columns_may_not_be_named_like_outputs(snapshot: Snapshot, own: list[str], clash: bool) -> None:
    request = resolve(snapshot, carrier_profile)
    if not clash:
        request.check_own_columns(own)
        return
    with pytest.raises(OutputNameClashError, match=rf"'flights' of carrier_profile:flights .* {own[0]!r}"):
        request.check_own_columns(own)
    with pytest.raises(OutputNameClashError, match=r"Rename your column\.$"):
        resolve(snapshot, carrier_profile, full_feature_names=True).check_own_columns(["carrier_profile__flights"])


@pytest.mark.parametrize(
    ("features", "full"),
    [
        ([delay_model, dest_is_warm], False),
        ([origin_weather, dest_weather[["sky"]], "delay_now:hour"], True),
        (["route_stats:distance", carrier_profile], False),
    ],
)
def test_references_ask_again_for_the_same(snapshot: Snapshot, features: Any, full: bool) -> None:
    import json

    request = resolve(snapshot, features, full_feature_names=full)
    references = json.loads(json.dumps(request.references))
    assert from_references(snapshot, references, full_feature_names=full) == request


def test_one_column_can_serve_two_declared_types(tmp_path: Path) -> None:
    from support.projects import make_workspace

    views = [
        FeatureView(f"v{kind}".lower(), entities=[Entity(f"e{kind}".lower(), {"id": kind})], source=weather,
                    schema=[Field(f"x{kind}", Int64)])
        for kind in (Int32, Int64)
    ]  # fmt: skip
    with make_workspace(tmp_path, views, now_us=0).registry as registry:
        snapshot = Snapshot.of(registry.definitions.read("shop"))
    assert resolve(snapshot, views).key_types == {"id": (Int32, Int64)}


def test_route_stats_reads_composite_keys(snapshot: Snapshot) -> None:
    (read,) = resolve(snapshot, route_stats.with_join_keys({"dest": "to"})[["distance"]]).reads
    assert read.key_columns == (("origin", "origin"), ("dest", "to"))


@pytest.mark.parametrize("full", [False, True])
def test_a_star_names_all_features_of_a_view(snapshot: Snapshot, full: bool) -> None:
    for text, view in (
        ("carrier_profile:*", carrier_profile),
        ("delay_now:*", delay_now),
        ("every_type:*", every_type),
    ):
        for asked, same in ((text, view), ([text, "route_stats:distance"], [view, "route_stats:distance"])):
            request = resolve(snapshot, asked, full_feature_names=full)
            assert request == resolve(snapshot, same, full_feature_names=full)
            # What a saved training set keeps names each feature: one that the view gets later is not among them.
            assert "*" not in str(request.references)
            assert from_references(snapshot, request.references, full_feature_names=full).outputs == request.outputs


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ("carrier_profil:*", NotFoundError, "no feature view 'carrier_profil'. Did you mean 'carrier_profile'?"),
        ("delay_nov:*", NotFoundError, "'delay_now'"),
        ("*", NotFoundError, "no feature service '*'"),
        ("*:*", NotFoundError, "no feature view '*'"),
        ("carrier_profile:fl*", NotFoundError, "has no feature 'fl*'. Known are: flights"),
        ("carrier_profile:", NotFoundError, "has no feature ''"),
        ("carrier_profile", NotFoundError, "all of a view as carrier_profile:*"),
        (["carrier_profile:*", "carrier_profile:flights"], OutputNameClashError, "Ask for it once"),
        (["carrier_profile:*", "route_stats:*"], OutputNameClashError, "full_feature_names=True"),
    ],
)
def test_a_star_that_names_nothing_says_so(
    snapshot: Snapshot, features: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        resolve(snapshot, features)
    assert message in str(caught.value)
