"""Lives of a project that are legitimate: copied, moved, beside others. And what of it may not change meanwhile."""

from __future__ import annotations

import shutil
from contextlib import closing
from copy import deepcopy
from pathlib import Path

from support.command_line import CommandLine
from support.pieces import Project

CHECKS_OF_THE_MACHINE = ("disk", "scripts of the online store")
"""What the doctor says of the disk and the Redis that the tests run on."""


def contents(project: Project, keys: str = "fs:shop:*") -> dict[str, bytes]:
    """Return every file and folder below a project's folder and every key of its Redis, byte for byte, with expiries.

    The lock of an embedded store is left out: opening it writes there.
    """
    found = {
        str(path): path.read_bytes() if path.is_file() else b"(folder)"
        for path in project.root.rglob("*")
        if path.name != "lock.mdb"
    }
    if project.online_url is not None:
        with closing(project._client()) as client:
            for key in client.scan_iter(match=keys):
                found[key.decode()] = client.get(key)
                found[f"{key.decode()} expires"] = str(client.pexpiretime(key)).encode()
    return found


def copy_of(project: Project, root: Path, online_url: str | None = None) -> Project:
    """Return a copy of a project's repo, registry and offline store, with an online store of its own."""
    made = Project(root, online_url)
    for name in ("features.py", "trips.parquet"):
        shutil.copy2(project.root / name, root / name)
    made.rows = deepcopy(project.rows)
    project.back_up(root / "data", ["registry", "offline"])
    return made


def check_calm(project: Project, fs: CommandLine) -> None:
    """Check that nothing is alarmed and that what is online is what the table says."""
    assert project.kinds() == set()
    assert [
        check for check in fs.json("doctor") if check["state"] != "ok" and check["name"] not in CHECKS_OF_THE_MACHINE
    ] == []
    assert [problem for view in fs.json("verify") for problem in view["problems"]] == []
    assert [found for view in fs.json("status") for found in view["mismatches"]] == []
    assert fs.json("plan", "--check") | {"revision": 0} == {
        "project": "shop",
        "revision": 0,
        "applied": None,
        "worst": None,
        "is_refused": False,
        "notices": [],
        "steps": [],
    }
    assert project.online() == project.offline()
