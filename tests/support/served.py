"""A project whose services keep what they answer, and rows that a server kept some days ago."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from featurestore.served.keep import read_served
from support.clock import ManualClock
from support.serving import HOUR_US, Project, serving_here, small_project

LOGGED = """

from featurestore import ServedLog

hidden = FeatureView(
    "hidden", entities=[customer], source=orders,
    schema=[Field("email", String, tags={"personal": "true"}), Field("city", String)],
)

@on_demand_feature_view(sources=[hidden[["email", "city"]]], schema=[Field("length", Int64)])
def measured(inputs):
    return {"length": [None if email is None else len(email) for email in inputs["email"]]}

logged = FeatureService("logged", features=[fresh, routes, spending], log=ServedLog(1.0, keys="plain"))
whole = FeatureService("whole", features=[everything], log=ServedLog(1.0, keys="plain"))
private = FeatureService("private", features=[hidden, measured], log=ServedLog(1.0, retention=timedelta(days=2)))
"""
SECRET = {"secret": "a long random text that nobody guesses"}


def logged_project(root: Path, now_us: int) -> Project:
    """The small project with services that keep a log; needs FS_SERVED__SECRET."""
    found = small_project(root, now_us)
    with (found.root / "features.py").open("a") as features:
        features.write(LOGGED)
    found.apply()
    found.put("hidden", {"customer_id": 1}, {"email": "ann@example.org", "city": "Bonn"}, event_us=now_us - HOUR_US)
    return found


def ask(client: httpx.Client, service: str, entities: Mapping[str, Any], request_id: str, **more: Any) -> Any:
    body = {"feature_service": service, "entities": entities, "include": ["status", "event_timestamp"], **more}
    answer = client.post("/v1/online-features", json=body, headers={"x-request-id": request_id})
    assert answer.status_code == 200, answer.text
    return answer.json()


def kept(project: Project, clock: ManualClock, service: str, days: float, ids: list[int], *, number: int = 0) -> str:
    """Write rows as a server does, so many days ago."""
    workspace = project.workspace(clock)
    with serving_here(project.workspace(ManualClock(clock() - round(days * 86_400_000_000)))) as client:
        ask(client, service, {"customer_id": ids}, f"r{number}")
    workspace.close()
    return f"r{number}"


def ids_of(project: Project, clock: ManualClock, service: str = "whole") -> list[Any]:
    return read_served(project.workspace(clock), service, 0, clock() + 1).column("key.customer_id").to_pylist()
