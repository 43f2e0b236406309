"""The flat list of features: figures of runs and of training sets, freshness, readers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from featurestore_registry.documents import ColumnStatistics, StatisticsDocument
from support.small_project import carrier_profile, small_project

from featurestore.ledger.watermarks import Watermark, write_watermark
from featurestore.maintenance.features import list_features


def statistics(made_us: int, **nulls: int) -> dict[str, Any]:
    """Return a document of 8 rows, with so many nulls in each column."""
    columns = tuple(ColumnStatistics(name, "Float64", rows=8, nulls=count) for name, count in nulls.items())
    return asdict(StatisticsDocument(made_us, 8, 8, columns))


def test_what_runs_and_training_sets_tell(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    ledger = workspace.ledger
    ledger.append("shop", "statistics", "carrier_profile.1", statistics(1, last_delay=8, flights=8))
    ledger.append("shop", "statistics", "carrier_profile.1", statistics(2, last_delay=2, flights=0))
    ledger.append("shop", "statistics", "airport_weather.2", statistics(3, temp=4))  # of another generation
    for name, made_us, nulls in (("b", 5, 6), ("a", 4, 1)):
        read = {
            "origin_weather__temp": "airport_weather.1:temp",
            "hour": "delay_now.0:hour",
            "old": "route_stats.7:distance",
        }
        document = statistics(made_us, **dict.fromkeys(read, nulls))
        document["columns"] = [{**column, "feature": read[column["name"]]} for column in document["columns"]]
        ledger.append("shop", "statistics", f"training_set:{name}", document)
    registered = workspace.snapshot().registered("carrier_profile")
    write_watermark(ledger, registered, Watermark(greatest_event_us=7_000_000))

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
    fresh = {name.partition(":")[0] for name, each in found.items() if each.newest_event_us is not None}
    assert fresh == {"carrier_profile", "delay_now"}
    assert {name for name, each in found.items() if not each.online} == {"offline_only:secret"}
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
