"""`fs status` says that the online store does not answer: what it shows as online is what should be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.pieces import Project
from support.redis_server import RedisServer


def test_a_store_that_is_down_or_hangs_is_told(
    tmp_path: Path, start_redis: Callable[..., RedisServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_redis()
    project = Project(tmp_path / "repo", server.url)
    settings = f"project: shop\nonline_store: {{url: '{server.url}', read_timeout_ms: 1000, write_timeout_ms: 2000}}\n"
    (project.root / "feature_store.yaml").write_text(settings)
    project.source([(1, 1, 10), (2, 1, 20)])
    project.apply("first")
    features = project.root / "features.py"
    others = """
more = FeatureView("more", entities=[driver], source=trips.batch_source, schema=[Field("count", Int64)])
offline_only = FeatureView(
    "offline_only", entities=[driver], source=trips.batch_source, schema=[Field("count", Int64)], online=False
)
"""
    features.write_text(features.read_text() + others)
    fs = CommandLine(project.root, capsys)
    fs("apply", "--yes")
    fs("materialize")
    told = "What is online of {} cannot be told, only how many entities should be: Redis at 127.0.0.1:{}"
    views = ("more", "stats")
    assert "cannot be told" not in fs("status")
    assert [view["mismatches"] for view in fs.json("status")] == [[], [], []]

    for stop in (server.hang, server.kill):
        stop()
        said = fs("status")
        assert [said.count(told.format(view, server.port)) for view in views] == [1, 1]
        assert "What is online of offline_only" not in said
    found = {view["view"]: view for view in fs.json("status")}
    assert found["offline_only"]["mismatches"] == []
    for name in views:
        (mismatch,) = found[name]["mismatches"]
        assert (mismatch["piece"], mismatch["kind"]) == ("online", "unavailable")
        assert found[name]["online_rows"] == 2
