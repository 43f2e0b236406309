"""Lists in answers belong to who asked: what is done to them changes no other answer and no stored value."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.serving import FEATURES, Project, serving_here

from featurestore import FeatureStore
from featurestore.types.times import system_clock

LISTED = """
listed = FeatureView(
    "listed",
    entities=[customer],
    source=orders,
    schema=[Field("numbers", Array(Float64)), Field("tags", Array(Array(Float64)), default=[[0.5]])],
)


@on_demand_feature_view(sources=[listed], schema=[Field("greatest", Float64)])
def sorting(inputs):
    for numbers in inputs["numbers"]:
        numbers.sort(reverse=True)
    for tags in inputs["tags"]:
        (tags or [[]])[0].append(9.0)
    return {"greatest": [numbers[0] for numbers in inputs["numbers"]]}
"""
ASKED = ["sorting:greatest", "listed:numbers", "listed:tags"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr("support.serving.FEATURES", FEATURES + LISTED)
    project = Project(tmp_path)
    project.put("listed", {"customer_id": 1}, {"numbers": [1.0, 3.0, 2.0], "tags": None}, event_us=system_clock())
    project.put("listed", {"customer_id": 2}, {"numbers": [5.0, 4.0], "tags": [[1.0]]}, event_us=system_clock())
    return project


def test_a_function_that_sorts_in_place_sorts_its_own_lists(project: Project) -> None:
    expected = [[3.0, [1.0, 3.0, 2.0], [[0.5]]], [5.0, [5.0, 4.0], [[1.0]]]]
    with FeatureStore(project.root) as store:
        found = store.get_online_features(ASKED, {"customer_id": [1, 2]}).to_dict()
    assert [list(row) for row in zip(*(found[name.partition(":")[2]] for name in ASKED), strict=True)] == expected
    with serving_here(project.workspace()) as client:
        asked = {"features": ASKED, "entities": {"customer_id": [1, 2]}}
        assert client.post("/v1/online-features", json=asked).json()["rows"] == expected


def test_a_default_that_is_a_list_is_given_anew(project: Project) -> None:
    with FeatureStore(project.root) as store:
        for _ in range(2):
            tags = store.get_online_features(["listed:tags"], {"customer_id": [1, 7]}).to_dict()["tags"]
            assert tags == [[[0.5]], [[0.5]]]
            tags[0][0].append("LEAK")
            assert tags[1] == [[0.5]]
