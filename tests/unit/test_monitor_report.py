"""How what monitors found is told: in few lines, to the second, and whole as JSON."""

from __future__ import annotations

from featurestore_registry.findings import ComparedLine, MonitorAlarm, MonitorDocument, WatchedFeature

from featurestore.quality.report import MonitorResult

AT_US = 1_710_000_000_932_038


def test_features_that_are_not_judged_for_one_reason_share_a_line() -> None:
    few = [
        WatchedFeature(f"f{n}", "not judged", 3, 1, not_judged=f'too few: Drift("f{n}", entities=3)') for n in range(24)
    ]
    other = WatchedFeature("other", "not judged", 3, 1, not_judged="its definition changed")
    line = ComparedLine("psi", 1.0, 0.2, "PSI 1", True, True)
    far, fine = WatchedFeature("far", "alarm", 9, 9, lines=(line,)), WatchedFeature("fine", "ok", 9, 9, lines=(line,))
    alarm = MonitorAlarm("a1", "far", "psi", "PSI 1", AT_US)
    features = (*few, fine, other, far)
    document = MonitorDocument(
        "m", "t", "alarm", AT_US, AT_US, AT_US + 60_000_000, "b", features=features, alarms=(alarm,)
    )
    result = MonitorResult(document)
    told = [tuple(cells) for cells in result.cells()]
    assert told == [
        ("far", "alarm", "9", "9", "PSI 1"),
        ("fine", "ok", "9", "9", "PSI 1"),
        ("f0, f1, f2 and 21 more", "not judged", "3", "1", 'too few: Drift("f0", entities=3)'),
        ("other", "not judged", "3", "1", "its definition changed"),
    ]
    assert "from 2024-03-09T16:00:00Z to 2024-03-09T16:01:00Z" in str(result)
    assert "alarm a1 since 2024-03-09T16:00:00Z:" in str(result)
    assert ".932038" not in str(result) + result.to_html()
    plain = result.to_dict()
    assert len(plain["features"]) == 27
    assert (plain["start"], plain["kept"]) == ("2024-03-09T16:00:00.932038Z", True)
    assert list(plain["alarms"]) == [
        {"id": "a1", "feature": "far", "line": "psi", "told": "PSI 1", "opened": plain["start"]}
        | {"acted": None, "sent": None}
    ]
