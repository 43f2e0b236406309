"""The container files as far as they can be tried without a container engine.

What Docker itself would do is recomputed here: variables, references between services, what the build sees. The
commands of the containers run for real, as processes of this machine.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
import yaml
from support.example import REPOSITORY
from support.postgres_server import PostgresServer
from support.redis_server import RedisServer, find_redis_server
from support.registry_process import registry_process
from support.serving import serving

pytestmark = pytest.mark.uncounted

SECRETS = {
    "POSTGRES_PASSWORD": "d" * 64,
    "REDIS_PASSWORD": "p" * 64,
    "REGISTRY_ADMIN_TOKEN": "a" * 64,
    "REGISTRY_SERVER_TOKEN": "s" * 64,
    "FS_SERVER_TOKEN": "t" * 64,
}
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
    assert set(compose["services"]) == {"postgres", "registry-setup", "registry", "redis", "materialize", "server"}
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
        interpolate(raw, {name: "x" for name in SECRETS if name != "FS_SERVER_TOKEN"})
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_images_are_pinned_and_services_hardened(compose: dict[str, Any]) -> None:
    bases = [arguments.split()[0] for word, arguments in instructions() if word == "FROM"]
    images = [service["image"] for service in compose["services"].values()]
    assert all(re.fullmatch(r"[a-z]+:\d+(\.\d+){1,2}(-[a-z-]+)?", image) for image in [*bases, *images])
    assert len(set(bases)) == 1
    users = [arguments for word, arguments in instructions() if word == "USER"]
    assert users == ["10001"]
    assert compose["services"]["redis"]["user"] == compose["services"]["postgres"]["user"] == "999:999"
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_servers_can_be_reached_and_only_from_this_machine(compose: dict[str, Any]) -> None:
    reached = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(reached) == {"registry", "server"}
    assert all(port.startswith("127.0.0.1:") for ports in reached.values() for port in ports)
    assert compose["networks"] == {"database": {"internal": True}, "stores": {"internal": True}, "public": None}
    assert {name: set(service["networks"]) for name, service in compose["services"].items()} == {
        "postgres": {"database"},
        "registry-setup": {"database"},
        "registry": {"database", "stores", "public"},
        "redis": {"stores"},
        "materialize": {"stores"},
        "server": {"stores", "public"},
    }


def test_a_service_knows_the_secrets_that_it_needs_and_no_others(compose: dict[str, Any]) -> None:
    told = {name: json.dumps(service["environment"]) for name, service in compose["services"].items()}
    knows = {name: {secret for secret, value in SECRETS.items() if value in text} for name, text in told.items()}
    assert knows == {
        "postgres": {"POSTGRES_PASSWORD"},
        "registry-setup": {"POSTGRES_PASSWORD", "REGISTRY_ADMIN_TOKEN", "REGISTRY_SERVER_TOKEN"},
        "registry": {"POSTGRES_PASSWORD"},
        "redis": {"REDIS_PASSWORD"},
        "materialize": {"REDIS_PASSWORD", "REGISTRY_ADMIN_TOKEN"},
        "server": {"REDIS_PASSWORD", "REGISTRY_SERVER_TOKEN", "FS_SERVER_TOKEN"},
    }


def test_the_database_is_the_one_that_the_registry_names(compose: dict[str, Any]) -> None:
    services = compose["services"]
    database = services["postgres"]["environment"]
    url = f"postgresql://{database['POSTGRES_USER']}@postgres:5432/{database['POSTGRES_DB']}"
    for name in ("registry-setup", "registry"):
        told = services[name]["environment"]
        assert (told["FS_REGISTRY"], told["PGPASSWORD"]) == (url, database["POSTGRES_PASSWORD"])
    asked = dict(zip(*[iter(services["postgres"]["healthcheck"]["test"][2:])] * 2, strict=True))
    assert asked["--username"] == database["POSTGRES_USER"]
    assert asked["--dbname"] == database["POSTGRES_DB"]
    for name in ("materialize", "server"):
        told = services[name]["environment"]
        assert told["FS_REGISTRY"] == f"http://{told['FS_REGISTRY_PLAIN_HTTP']}:6570"
        assert told["FS_REGISTRY_PLAIN_HTTP"] in services


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
    services = compose["services"]
    server, registry = services["server"], services["registry"]
    default = json.loads(dict(instructions())["CMD"])
    assert json.loads(dict(instructions())["ENTRYPOINT"]) == ["fs"]
    calls = [server["command"], default, registry["command"]]
    jobs = [services[name]["command"][0] for name in ("registry-setup", "materialize")]
    calls += [line.split()[1:] for job in jobs for line in job.splitlines() if line.startswith("fs ")]
    made = [" ".join(itertools.takewhile(lambda word: not word.startswith("-"), call)) for call in calls]
    assert made == [
        "serve",
        "serve",
        "registry serve",
        "registry upgrade",
        *["token create"] * 2,
        "apply",
        "materialize",
    ]
    for name, call in zip(made, calls, strict=True):
        command = [BIN / "fs", *name.split(), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for argument in call:
            assert not argument.startswith("--") or argument in shown, f"fs {name} {argument}"
    for service in (server, registry):
        port = service["command"][service["command"].index("--port") + 1]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f":{port}/ready" in service["healthcheck"]["test"][-1]
    assert dict(instructions())["EXPOSE"] == "6566"


@pytest.fixture
def compose_redis(compose: dict[str, Any], tmp_path: Path) -> Iterator[RedisServer]:
    """The service `redis`, by its own script, with another port and other folders."""
    service = compose["services"]["redis"]
    folder = tmp_path / "redis"
    folder.mkdir()
    (folder / "redis-server").symlink_to(find_redis_server())
    script = service["command"][0].replace("/tmp/redis.conf", str(folder / "redis.conf"))
    script = script.replace("/data", str(folder)).replace("--port 6379", '--port "$PORT" --bind 127.0.0.1')
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **service["environment"]}
    with RedisServer(folder, command=[*service["entrypoint"], script], environment=environment) as server:
        yield server


def test_redis_wants_its_password_keeps_data_and_never_evicts(compose_redis: RedisServer) -> None:
    assert SECRETS["REDIS_PASSWORD"] not in " ".join(psutil.Process(compose_redis.pid).cmdline())
    assert (compose_redis.directory / "redis.conf").stat().st_mode & 0o077 == 0
    with compose_redis.client() as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with compose_redis.client(password=SECRETS["REDIS_PASSWORD"]) as client:
        settings = client.config_get("appendonly", "maxmemory", "maxmemory-policy")
        assert settings == {"appendonly": "yes", "maxmemory": str(512 << 20), "maxmemory-policy": "noeviction"}


def as_process(service: dict[str, Any], places: dict[str, str]) -> dict[str, str]:
    """The variables of a service as a process of this machine sees them, and the image's."""
    image = dict(pair.split("=", 1) for word, pairs in instructions() if word == "ENV" for pair in pairs.split())
    given = {**service["environment"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}  # that of a checkout's tests
    for place, here in places.items():
        given = {key: value.replace(place, here) for key, value in given.items()}
    return {**image, "PATH": f"{BIN}:{os.environ['PATH']}", **given}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow(20)
def test_the_jobs_fill_registry_and_redis_and_the_server_serves_them(
    compose: dict[str, Any], compose_redis: RedisServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The scripts of the services one after the other, in a folder that holds what the image copies."""
    services = compose["services"]
    with postgres_server.connect() as connection:
        connection.execute("CREATE ROLE fs_registry LOGIN")
        connection.execute("CREATE DATABASE registry OWNER fs_registry")
    places = {"@redis:6379": f"@127.0.0.1:{compose_redis.port}", "@postgres:5432": f"@127.0.0.1:{postgres_server.port}"}
    job = services["materialize"]
    repo = tmp_path / "repo"
    for path in build_context():
        if path.startswith("feature_repo/"):
            target = repo / Path(path).relative_to("feature_repo")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / path, target)
    copied = files_of(repo)
    (repo / "data").mkdir()

    def run(service: dict[str, Any]) -> str:
        command, variables = [*service["entrypoint"], *service["command"]], as_process(service, places)
        done = subprocess.run(command, cwd=repo, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    set_up = services["registry-setup"]
    assert run(set_up).count("Its text is the one in") == 2
    assert run(set_up).count("is there already") == 2
    registry = services["registry"]
    with registry_process(repo, environment=as_process(registry, places), fresh=True) as url:
        places["http://registry:6570"] = url
        healthcheck = [part.replace("http://127.0.0.1:6570", url) for part in registry["healthcheck"]["test"][1:]]
        wait_until_healthy(healthcheck, as_process(registry, places))
        run(job)
        check_server(compose, repo, copied, places)


def check_server(compose: dict[str, Any], repo: Path, copied: dict[str, bytes], places: dict[str, str]) -> None:
    server = compose["services"]["server"]
    arguments = server["command"]
    workers = arguments[arguments.index("--workers") + 1]
    host = arguments[arguments.index("--host") + 1]
    with serving(
        repo, "--host", host, "--workers", workers, environment=as_process(server, places), fresh=True
    ) as process:
        port = process.url.rsplit(":", 1)[1].rstrip("/")
        healthcheck = [part.replace(":6566", f":{port}") for part in server["healthcheck"]["test"][1:]]
        wait_until_healthy(healthcheck, as_process(server, places))
        ask = {"features": ["carrier_delays:last_delay"], "entities": {"carrier": ["UA"]}}
        url = f"http://127.0.0.1:{port}/v1/online-features"
        assert httpx.post(url, json=ask).status_code == 401
        answer = httpx.post(url, json=ask, headers={"Authorization": f"Bearer {SECRETS['FS_SERVER_TOKEN']}"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == [["PRESENT"]]

    # The containers' file system is read-only but for their volumes.
    writable = tuple(volume.split(":")[1].removeprefix("/repo/") for volume in server["volumes"])
    after = files_of(repo)
    assert {name: after[name] for name in after if not name.startswith((*writable, "server.log"))} == copied


def wait_until_healthy(command: list[str], environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 20
    while (done := subprocess.run(command, env=environment, capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)
