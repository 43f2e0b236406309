"""The flat list of features: figures of runs and of training sets, freshness, readers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from featurestore_registry.documents import ColumnStatistics, StatisticsDocument
from support.projects import make_workspace
from support.small_project import DEFINITIONS, airport_weather, carrier_profile, offline_only, small_project

from featurestore.definitions import Field, on_demand_feature_view
from featurestore.ledger.watermarks import Watermark, write_watermark
from featurestore.maintenance.features import list_features
from featurestore.types import Float64

nothing = offline_only.replaced(deprecated="nobody fills it")


@on_demand_feature_view(sources=[carrier_profile, airport_weather], schema=[Field("both", Float64)])
def pair(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Of two views with events."""
    return {"both": inputs["temp"]}


@on_demand_feature_view(sources=[carrier_profile, nothing], schema=[Field("half", Float64)])
def lone(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Of two views, one without events and offline alone."""
    return {"half": inputs["last_delay"]}


def statistics(made_us: int, **nulls: int) -> dict[str, Any]:
    """Return a document of 8 rows, with so many nulls in each column."""
    columns = tuple(ColumnStatistics(name, "Float64", rows=8, nulls=count) for name, count in nulls.items())
    return asdict(StatisticsDocument(made_us, 8, 8, columns))


def test_what_runs_and_training_sets_tell(tmp_path: Path) -> None:
    others = [each for each in DEFINITIONS if each is not offline_only]
    workspace = make_workspace(tmp_path, [*others, nothing, pair, lone], now_us="2024-02-01T00:00:00Z")
    ledger = workspace.ledger
    ledger.append("shop", "statistics", "carrier_profile.1", statistics(1, last_delay=8, flights=8))
    ledger.append("shop", "statistics", "carrier_profile.1", statistics(2, last_delay=2, flights=0))
    ledger.append("shop", "statistics", "airport_weather.2", statistics(3, temp=4))  # of another generation
    for name, made_us, nulls in (("b", 5, 6), ("a", 4, 1)):
        read = {
            "origin_weather__temp": "airport_weather.1:temp",
            "hour": "delay_now.0:hour",
            "old": "route_stats.7:distance",
            "flights": "carrier_profile.1:flights",  # runs count it, too
        }
        document = statistics(made_us, **dict.fromkeys(read, nulls))
        document["columns"] = [{**column, "feature": read[column["name"]]} for column in document["columns"]]
        ledger.append("shop", "statistics", f"training_set:{name}", document)
    for name, newest_us in (("carrier_profile", 7_000_000), ("airport_weather", 5_000_000)):
        write_watermark(ledger, workspace.snapshot().registered(name), Watermark(greatest_event_us=newest_us))

    found = {feature.name: feature for feature in list_features(workspace)}
    assert list(found) == sorted(found)
    assert {name for name in found if name.startswith("delay_now")} == {"delay_now:hour", "delay_now:scaled_delay"}
    shares = {name: each.null_share for name, each in found.items() if each.null_share is not None}
    assert shares == {
        "carrier_profile:last_delay": 2 / 8,
        "carrier_profile:flights": 0.0,
        "airport_weather:temp": 6 / 8,
        "delay_now:hour": 6 / 8,
    }
    fresh = {name.partition(":")[0]: each.newest_event_us for name, each in found.items() if each.newest_event_us}
    assert fresh == {
        "carrier_profile": 7_000_000, "delay_now": 7_000_000,
        "airport_weather": 5_000_000, "dest_is_warm": 5_000_000, "pair": 5_000_000,
    }  # fmt: skip
    assert {name for name, each in found.items() if not each.online} == {"offline_only:secret", "lone:half"}
    assert {name: each.deprecated for name, each in found.items() if each.deprecated} == {
        "offline_only:secret": "nobody fills it"
    }
    assert found["route_stats:distance"].services == ("delay_model",)
    assert found["route_stats:flights"].services == ()
    assert found["delay_now:hour"].services == ("delay_model",)
    assert found["carrier_profile:flights"].type == str(carrier_profile.feature("flights").type)


def test_the_registry_is_read_once_for_all_views(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    read: list[str] = []
    scan = workspace.ledger.scan

    def noted(project: str, kind: str, **how: Any) -> Any:
        read.append(kind)
        return scan(project, kind, **how)

    workspace.ledger.scan = noted  # type: ignore[method-assign]
    list_features(workspace)
    assert sorted(read) == ["statistics", "watermark"]
