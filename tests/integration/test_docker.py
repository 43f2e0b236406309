"""The container files as far as they can be tried without a container engine.

What Docker itself would do is recomputed here: variables, references between services, what the build sees. The
commands of the containers run for real, as processes of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml
from support.example import REPOSITORY
from support.redis_server import RedisServer, find_redis_server

SECRETS = {"REDIS_PASSWORD": "p" * 64, "FS_SERVER_TOKEN": "t" * 64}
SERVICE_KEYS = {
    *["image", "build", "entrypoint", "command", "environment", "volumes", "tmpfs", "networks", "ports", "user"],
    *["restart", "depends_on", "healthcheck", "read_only", "cap_drop", "security_opt"],
}
VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Z_]+)(?::\?(?P<message>[^}]*))?\})")
BIN = Path(sys.executable).parent


def interpolate(node: Any, variables: dict[str, str]) -> Any:
    """Replace ``${NAME:?message}`` and ``$$`` as Compose does; an unset variable is a KeyError."""
    if isinstance(node, dict):
        return {key: interpolate(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, variables) for value in node]
    if not isinstance(node, str):
        return node
    return VARIABLE.sub(lambda found: "$" if found["escaped"] else variables[found["name"]], node)


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    loaded = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def compose(raw: dict[str, Any]) -> dict[str, Any]:
    resolved = interpolate(raw, SECRETS)
    assert isinstance(resolved, dict)
    return resolved


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continued lines joined."""
    text = "\n".join(
        line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    ).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def build_context() -> list[str]:
    """The files that .dockerignore lets through; the last rule that matches a file or a folder above it decides."""
    rules = [
        (not rule.startswith("!"), rule.removeprefix("!"))
        for rule in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if rule and not rule.startswith("#")
    ]

    def left_out(path: Path) -> bool:
        above = [path, *path.parents][:-1]
        verdict = False
        for excluded, pattern in rules:
            # Of Docker's patterns the file uses a plain path, `*`, and `**/name` for a name at any depth.
            if pattern == "*" or any(pattern in (str(each), f"**/{each.name}") for each in above):
                verdict = excluded
        return verdict

    tops = [top for top in REPOSITORY.iterdir() if not left_out(top.relative_to(REPOSITORY))]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    paths = [file.relative_to(REPOSITORY) for file in files]
    return sorted(str(path) for path in paths if not left_out(path))


def test_services_use_known_keys_and_what_they_name_exists(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "volumes", "networks"}
    assert set(compose["services"]) == {"redis", "materialize", "server"}
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert set(service["networks"]) <= set(compose["networks"]), name
        for volume in service["volumes"]:
            assert volume.split(":")[0] in compose["volumes"], name
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert condition in {"service_healthy", "service_completed_successfully"}
            needed = compose["services"][other]
            # A service that is waited for must be able to get there, or everything hangs.
            assert "healthcheck" in needed if condition == "service_healthy" else needed["restart"] == "no"


def test_nothing_starts_without_its_secrets(raw: dict[str, Any]) -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    named = {found["name"]: found["message"] for found in VARIABLE.finditer(text) if found["name"]}
    assert set(named) == set(SECRETS)
    assert all(named.values()), "a secret must be demanded (:?), never defaulted"
    with pytest.raises(KeyError, match="FS_SERVER_TOKEN"):
        interpolate(raw, {"REDIS_PASSWORD": "x"})


def test_images_are_pinned_and_services_hardened(compose: dict[str, Any]) -> None:
    bases = [arguments.split()[0] for word, arguments in instructions() if word == "FROM"]
    images = [service["image"] for service in compose["services"].values()]
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+(-[a-z-]+)?", image) for image in [*bases, *images])
    assert len(set(bases)) == 1
    users = [arguments for word, arguments in instructions() if word == "USER"]
    assert users == ["10001"]
    assert compose["services"]["redis"]["user"] == "999:999"
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_the_server_can_be_reached_and_only_from_this_machine(compose: dict[str, Any]) -> None:
    assert {name for name, service in compose["services"].items() if "ports" in service} == {"server"}
    assert all(port.startswith("127.0.0.1:") for port in compose["services"]["server"]["ports"])
    assert compose["networks"]["stores"] == {"internal": True}
    assert compose["services"]["redis"]["networks"] == compose["services"]["materialize"]["networks"] == ["stores"]


def test_the_image_copies_what_exists_and_the_build_may_see() -> None:
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "VOLUME", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    seen = build_context()
    stages = {
        arguments.split(" AS ")[1] for word, arguments in instructions() if word == "FROM" and " AS " in arguments
    }
    for word, arguments in instructions():
        assert word in known, word
        if word == "COPY" and arguments.startswith("--from="):
            assert arguments.split()[0].removeprefix("--from=") in stages
        elif word == "COPY":
            for path in arguments.split()[:-1]:
                assert any(found == path or found.startswith(f"{path}/") for found in seen), path
    assert not [path for path in seen if path.startswith((".", "tests", "docs", "feature_repo/data"))]


def test_what_the_build_sees_makes_a_whole_wheel(tmp_path: Path) -> None:
    context, wheels = tmp_path / "context", tmp_path / "wheels"
    seen = build_context()
    for path in seen:
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / path, context / path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(wheels), str(context)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("featurestore-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    packages = [
        path for path in build_context() if path.startswith(("featurestore/", "registry/featurestore_registry/"))
    ]
    assert {path.removeprefix("registry/") for path in packages} <= packed
    assert not [path for path in packed if path.startswith(("registry/", "tests/", "feature_repo/"))]


def test_commands_of_the_containers_exist(compose: dict[str, Any]) -> None:
    server, job = compose["services"]["server"], compose["services"]["materialize"]
    default = json.loads(dict(instructions())["CMD"])
    assert json.loads(dict(instructions())["ENTRYPOINT"]) == ["fs"]
    calls = [server["command"], default]
    calls += [line.split()[1:] for line in job["command"][0].splitlines() if line.startswith("fs ")]
    assert [call[0] for call in calls] == ["serve", "serve", "apply", "materialize"]
    for command, *arguments in calls:
        shown = subprocess.run([BIN / "fs", command, "--help"], capture_output=True, text=True, check=True).stdout
        for argument in arguments:
            assert not argument.startswith("--") or argument in shown, f"fs {command} {argument}"
    port = server["command"][server["command"].index("--port") + 1]
    assert server["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert dict(instructions())["EXPOSE"] == port
    assert f":{port}/ready" in server["healthcheck"]["test"][-1]


def test_redis_starts_as_the_container_would_start_it(compose: dict[str, Any], tmp_path: Path) -> None:
    """Its own script, with another port and folder: it wants the password, keeps data, and never evicts."""
    service = compose["services"]["redis"]
    (tmp_path / "redis-server").symlink_to(find_redis_server())
    script = service["command"][0].replace("/tmp/redis.conf", str(tmp_path / "redis.conf"))
    script = script.replace("/data", str(tmp_path)).replace("--port 6379", '--port "$PORT" --bind 127.0.0.1')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **service["environment"]}
    with RedisServer(tmp_path, command=[*service["entrypoint"], script], environment=environment) as server:
        assert SECRETS["REDIS_PASSWORD"] not in " ".join(psutil.Process(server.pid).cmdline())
        assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
        with server.client() as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with server.client(password=SECRETS["REDIS_PASSWORD"]) as client:
            settings = client.config_get("appendonly", "maxmemory", "maxmemory-policy")
            assert settings == {"appendonly": "yes", "maxmemory": str(512 << 20), "maxmemory-policy": "noeviction"}
