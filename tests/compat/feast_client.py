"""Read our server with Feast's own client: ``python tests/compat/feast_client.py [ENVIRONMENT]``.

Makes an environment of its own (kept where a folder is named), installs Feast there, serves a small project with a
token, and reads it through Feast's `FeatureStore` and `RemoteOnlineStore`. Not among the tests of ``make test``:
Feast brings some 50 packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
FEAST_VERSION = "0.67.0"


def environment(folder: Path, extras: str = "") -> Path:
    """Return the Python of an environment with Feast, and some of its extras: ``[redis]``."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"feast{extras}=={FEAST_VERSION}"], check=True)
    return python


def read_by_feast(python: Path, folder: Path, url: str, token: str) -> dict[str, Any]:
    """Return what Feast's client reads from a server."""
    repo = folder / "feast_repo"
    repo.mkdir()
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": str(repo / "registry.db"),
        "online_store": {"type": "remote", "path": url},
        "auth": {"type": "oidc", "token": token},
        "entity_key_serialization_version": 3,
    }
    (repo / "feature_store.yaml").write_text(json.dumps(settings))
    script = Path(__file__).with_name("feast_client_reads.py")
    made = subprocess.run(
        [str(python), "-W", "ignore", str(script), str(repo)],
        capture_output=True,
        text=True,
        env={**os.environ, "FEAST_USAGE": "False"},
    )
    if made.returncode != 0:
        raise SystemExit(made.stderr[-4000:])
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


def expected(event_us: int) -> dict[str, Any]:
    """Return what the client must have read."""
    from support.serving import HOUR_US

    rows = {"clicks": [7, 0, 3, 0], "score": [0.5, None, None, None]}
    first_event = datetime.fromtimestamp((event_us - HOUR_US // 2) / 1e6, UTC).isoformat()
    types = {
        "an_int32": [-5],
        "an_int64": [2**63 - 1],
        "a_float64": [2.5],
        "a_bool": [True],
        "a_string": ["Zürich 🛬"],
        "an_instant": [1385000000],
        "a_date": ["2013-11-03"],
        "a_decimal": ["12.50"],
        "numbers": [[1.5, 2.5]],
    }
    return {
        "by_references": {"customer_id": [1, 2, 3, 4], **rows},
        "by_service": {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"], "clicks": [7], "score": [0.5]}
        | {"miles": [2475]},
        "full_names": {"customer_id": [1], "fresh__score": [0.5], "fresh__clicks": [7]},
        "statuses": {
            "customer_id": ["PRESENT"] * 4,
            "clicks": ["PRESENT", "OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"],
            "score": ["PRESENT", "OUTSIDE_MAX_AGE", "NULL_VALUE", "NOT_FOUND"],
        },
        "every_type": {"customer_id": [1], **types},
        "online_read": [[first_event, {"clicks": 7, "score": 0.5}], [first_event, {"clicks": None, "score": None}]],
        "unknown_feature": "404",
        "wrong_token": "401",
    }


def main() -> None:
    """Compare, and say so."""
    sys.path.insert(0, str(TESTS))
    from support.serving import TOKEN, serving, small_project

    from featurestore.types.times import system_clock

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = environment(Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "environment")
        now_us = system_clock() // 1_000_000 * 1_000_000
        project = small_project(folder / "repo", now_us)
        values = {
            "an_int32": -5,
            "an_int64": 2**63 - 1,
            "a_float64": 2.5,
            "a_bool": True,
            "a_string": "Zürich 🛬",
            "an_instant": datetime.fromtimestamp(1385000000.5, UTC),
            "a_date": date(2013, 11, 3),
            "a_decimal": Decimal("12.50"),
            "numbers": [1.5, 2.5],
        }
        project.put("everything", {"customer_id": 1}, values, event_us=now_us)
        with serving(project.root, environment={"FS_SERVER_TOKEN": TOKEN}) as server:
            found = read_by_feast(python, folder, server.url, TOKEN)
    wrong = 0
    for name, wanted in expected(now_us).items():
        same = found.get(name) == wanted
        wrong += not same
        print(f"{'ok   ' if same else 'WRONG'} {name}")
        if not same:
            print(f"      expected {json.dumps(wanted)}\n      read     {json.dumps(found.get(name))}")
    print(f"{len(found) - wrong} passed, {wrong} failed")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
