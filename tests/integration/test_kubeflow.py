"""`deploy/kubeflow/`: the pipeline, compiled by Kubeflow's own SDK, and its commands against the command line."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.example import REPOSITORY, made_once
from support.mlflow_server import companion
from support.processes import plain_environment

pytestmark = pytest.mark.uncounted

PIPELINE = REPOSITORY / "deploy" / "kubeflow" / "pipeline.py"
IMAGE = "registry.example/features:1"
SECRET = "s3cret" * 6


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the pipeline, what it wants of the cluster, and the whole text."""
    text = made_once(tmp_path_factory, "kubeflow", compile_into).read_text()
    pipeline, cluster = yaml.safe_load_all(text)
    return pipeline, cluster["platforms"]["kubernetes"]["deploymentSpec"]["executors"], text


def compile_into(out: Path) -> None:
    environment = {name: value for name, value in plain_environment().items() if name != "PYTHONPATH"}
    tokens = {"FS_REGISTRY_TOKEN": SECRET, "FS_SERVED__SECRET": SECRET}  # as whoever compiles it may have them
    subprocess.run(
        [companion("python"), "-W", "ignore", str(PIPELINE), "--image", IMAGE, f"{out}.yaml"],
        check=True,
        env=environment | tokens,
        cwd=out.parent,
    )
    Path(f"{out}.yaml").rename(out)


def test_the_steps_come_one_after_the_other(compiled: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    pipeline, cluster, text = compiled
    tasks = pipeline["root"]["dag"]["tasks"]
    after = {name: task.get("dependentTasks", []) for name, task in tasks.items()}
    assert after == {
        "apply": [], "materialize": ["apply"], "monitor": ["materialize"], "condition-1": ["monitor"]
    }  # fmt: skip
    condition = tasks["condition-1"]["triggerPolicy"]["condition"]
    assert condition == "inputs.parameter_values['pipelinechannel--monitor-decision'] == 'train'"
    inner = pipeline["components"]["comp-condition-1"]["dag"]["tasks"]
    assert list(inner) == ["train"]
    # A kept answer of an hour ago would be none.
    assert [task["cachingOptions"] for name, task in {**tasks, **inner}.items() if name != "condition-1"] == [{}] * 4
    assert {each["container"]["image"] for each in executors(pipeline).values()} == {IMAGE}
    secrets = {
        name: {key["envVar"]: key["secretKey"] for each in step["secretAsEnv"] for key in each["keyToEnv"]}
        for name, step in cluster.items()
    }
    assert secrets == {
        "exec-apply": {"FS_REGISTRY_TOKEN": "editor"},
        "exec-materialize": {"FS_REGISTRY_TOKEN": "operator"},
        "exec-monitor": {"FS_REGISTRY_TOKEN": "operator", "FS_SERVED__SECRET": "served"},
        "exec-train": {"FS_REGISTRY_TOKEN": "operator"},
    }
    assert SECRET not in text
    assert all("env" not in each["container"] for each in executors(pipeline).values())


def executors(pipeline: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pipeline["deploymentSpec"]["executors"]
    return found


def test_its_commands_are_commands(compiled: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    found = executors(compiled[0])
    lines = [found[f"exec-{name}"]["container"] for name in ("apply", "materialize")]
    words = [[*line["command"], *line["args"]] for line in lines]
    script = found["exec-monitor"]["container"]["command"][2]
    words.append(
        next(line for line in script.splitlines() if "fs monitor" in line).partition("DECISION=$1 ")[2].split()
    )
    for program, name, *arguments in words:
        command = importlib.import_module(f"featurestore.cli.commands.{name}").command
        known = {option for parameter in command.params for option in parameter.opts}
        assert program == "fs"
        assert {word for word in arguments if word.startswith("--")} <= known
    assert [words[0][1], words[1][1], words[2][1]] == ["apply", "materialize", "monitor"]


@pytest.mark.parametrize(
    ("answer", "code", "decision"),
    [
        ('sh -c "$6"; exit 3', 0, "train"),  # a new alarm: its command is run
        ("exit 3", 0, "rest"),  # one that was acted on before
        ("exit 0", 0, "rest"),
        ("exit 1", 1, "rest"),  # it could not tell: the pipeline stops
    ],
)
def test_an_alarm_that_is_new_trains(
    compiled: tuple[dict[str, Any], dict[str, Any], str], tmp_path: Path, answer: str, code: int, decision: str
) -> None:
    container = executors(compiled[0])["exec-monitor"]["container"]
    out = tmp_path / "outputs" / "decision"
    fs = tmp_path / "fs"
    fs.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3 $4 $5" = "monitor --repo /repo --cooldown 1d" ] || exit 9\nshift\n{answer}\n'
    )
    fs.chmod(0o755)
    arguments = [container["args"][0], str(out)]
    environment = plain_environment() | {"PATH": f"{tmp_path}:{plain_environment()['PATH']}"}
    done = subprocess.run([*container["command"], *arguments], env=environment, check=False)
    assert (done.returncode, out.read_text()) == (code, decision)
