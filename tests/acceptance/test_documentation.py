"""The documentation says what is so: pages show what their commands print, links lead somewhere, tests exist."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pkgutil
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import FunctionType, ModuleType

import click
import nbclient
import nbformat
import pytest
from sphinx.util.inventory import InventoryFile
from sphinx.util.typing import Inventory
from support.example import EXAMPLE, REPOSITORY
from support.forked_fs import forked_fs
from support.postgres_server import PostgresServer, find_program
from support.shell_blocks import Shell, blocks, check_page, commands, today

import featurestore
from featurestore import backends
from featurestore.cli.main import fs
from featurestore.project.settings import EngineLimits, JournalSettings, ServerSettings, Settings
from featurestore.server.describe.examples import ERROR

DOCS = REPOSITORY / "docs"
PREPARED = ("fs init tour", "cd tour", "fs apply --yes", "fs materialize")
TEMPLATE = REPOSITORY / "featurestore" / "cli" / "template" / "features.py.txt"
HOW_TO = sorted(page for page in (DOCS / "how-to").glob("*.md") if page.stem != "index")


@pytest.mark.slow(4)
def test_the_readmes_tour_prints_what_it_shows(tmp_path: Path) -> None:
    def tour(text: str) -> str:
        return text.partition("<!-- tour:")[2].partition("<!-- end of the tour -->")[0]

    wrong = run_page(REPOSITORY / "README.md", Shell(tmp_path), tour)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow(10)
def test_the_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "feature_repo", ignore=shutil.ignore_patterns("data", "__pycache__"))
    wrong = run_page(DOCS / "tutorial.md", Shell(tmp_path))
    assert not wrong, "\n".join(wrong)


def test_the_tutorial_quotes_the_example_as_it_is() -> None:
    definitions = (EXAMPLE / "features.py").read_text(encoding="utf-8")
    quoted = [
        block.text for block in blocks((DOCS / "tutorial.md").read_text(encoding="utf-8")) if block.language == "py"
    ]
    assert len(quoted) > 3
    assert [text for text in quoted if text not in definitions] == []


PREPARED_AT = "2026-11-26T09:21:00Z"
"""When the pages go on with it: its own shell's clock has moved on, and that of a later one begins anew."""


@pytest.fixture(scope="session")
def prepared_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repo that the how-to pages begin with: made, applied, materialized."""
    return prepared(Shell(tmp_path_factory.mktemp("prepared")))


def prepared(shell: Shell) -> Path:
    for command in PREPARED:
        shell.run(command)
    return shell.folder


@pytest.mark.slow(2)
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_prints_what_it_shows(
    page: Path, prepared_repo: Path, tmp_path: Path, redis_url: str, request: pytest.FixtureRequest
) -> None:
    stands_for = {"redis://localhost:6379/0": redis_url, "/srv/tour": str(tmp_path / "tour")}
    if page.stem == "registry":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        place = f"127.0.0.1:{server.port}"
        shell = Shell(tmp_path, stands_for | {"postgres@db.example": f"fs@{place}", "db.example": place}, now=today())
        shell.environment["PATH"] += f"{os.pathsep}{Path(find_program('pg_dump')).parent}"
        prepared(shell)
    elif any("redis://localhost" in block.text for block in blocks(page.read_text(encoding="utf-8"))):
        shell = Shell(tmp_path, stands_for, now=today())
        prepared(shell)
    else:
        shutil.copytree(prepared_repo, tmp_path / "tour")
        shell = Shell(tmp_path, stands_for, now=PREPARED_AT)
        shell.run("cd tour")
    wrong = run_page(page, shell)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_says_where_it_begins(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    runs = any(block.language in ("console", "python") for block in blocks(text))
    assert ("](index.md#where-each-page-begins)" in text.split("\n\n")[1]) == runs


def test_the_servers_examples_are_what_it_answers(prepared_repo: Path, tmp_path: Path) -> None:
    """What the page of the HTTP API shows, which `/openapi.json` has, too."""
    shutil.copytree(prepared_repo, tmp_path / "tour")
    shell = Shell(tmp_path, now=PREPARED_AT)
    shell.run("cd tour")
    for page in ("push", "predictions-and-labels"):  # a source to push to, and a service that keeps a log
        for command in commands(blocks((DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8"))[0]):
            shell.run(command[0])
    shell.run("fs serve")
    text = (DOCS / "reference" / "http.md").read_text(encoding="utf-8").partition("## Errors")[0]
    shown = blocks(text)
    sent = {place: shell.run(block.text.strip()) for place, block in enumerate(shown) if block.language == "sh"}
    unknown = shown[0].text.replace('"feature_service": "trip_model_v1"', '"features": ["driver_stat:trips"]')
    told = json.loads(shell.run(unknown.strip()))["error"]
    shell.close()
    assert {**told, "details": {}} == {**ERROR["error"], "details": {}}
    assert len(sent) == 7
    assert "# TYPE featurestore_requests_total counter" in sent.popitem()[1]
    for place, answer in sent.items():
        given, expected = json.loads(answer), json.loads(shown[place + 1].text)
        if "registry_age_seconds" in expected:
            expected["registry_age_seconds"] = given["registry_age_seconds"]
        assert given == expected


def test_the_tour_ends_where_the_how_to_pages_begin(prepared_repo: Path) -> None:
    tour = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("<!-- end of the tour -->")[0]
    assert blocks(tour)[-1].text == "$ mv features.saved features.py\n$ fs plan\n" + Shell(prepared_repo).run("fs plan")
    begins = (DOCS / "how-to" / "index.md").read_text(encoding="utf-8")
    assert f"\n{' && '.join(PREPARED)}\n" in begins


def run_page(page: Path, shell: Shell, part: Callable[[str], str] = str) -> list[str]:
    try:
        return check_page(page, shell, part)
    finally:
        shell.close()


def test_the_generated_pages_are_up_to_date() -> None:
    code = "import runpy, sys; sys.argv[1:] = ['--check']; runpy.run_path('docs/generate.py', run_name='__main__')"
    ((status, said),) = forked_fs().run_code(code, REPOSITORY)
    assert status == 0, f"{said}\nWrite them with `python docs/generate.py`."


def test_the_list_of_commands_is_what_fs_help_prints(tmp_path: Path) -> None:
    wrong = run_page(DOCS / "reference" / "cli.md", Shell(tmp_path))
    assert not wrong, "\n".join(wrong)


def undocumented_commands(site: Path, inventory: Inventory) -> list[str]:
    """Return the commands and options that the built page of the commands lacks."""
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    missing = []
    for name, command in leaf_commands(fs, "fs"):
        section = name.replace(" ", "-")
        if f'<section id="{section}">' not in page:
            missing.append(name)
        options = [text for option in command.params if isinstance(option, click.Option) for text in option.opts]
        missing += [f"{name} {text}" for text in options if f"{section}.{text}" not in inventory["std:cmdoption"]]
    return missing


INNER = {"joined"}
"""What is public for other packages of ours alone."""


def undocumented_names(inventory: Inventory) -> list[str]:
    """Return what users import, and members and fields of the classes on the page, that the page lacks."""
    shown = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    shown |= {".".join(name.split(".")[-2:]) for name in shown}
    wanted = {f"featurestore.{name}" for name in featurestore.__all__} | {"featurestore.client.FeatureClient"}
    for owner in {pkgutil.resolve_name(name) for name in inventory["py:class"]}:
        members = [
            member
            for member, found in vars(owner).items()
            if isinstance(found, FunctionType | property | functools.cached_property)
        ]
        members += [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        members += owner.__members__ if issubclass(owner, Enum) else []
        wanted |= {
            f"{owner.__name__}.{member}" for member in members if not member.startswith("_") and member not in INNER
        }
    return sorted(wanted - shown)


def leaf_commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command, info_name=name)
    for child in command.list_commands(context):
        found = command.get_command(context, child)
        assert found is not None
        yield from leaf_commands(found, f"{name} {child}")


def test_every_setting_is_documented() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    names = [f"| `{name}` |" for name in Settings.model_fields]
    names += [f"| `engine.{name}` |" for name in EngineLimits.model_fields]
    names += [f"| `server.{name}` |" for name in ServerSettings.model_fields]
    names += [f"| `journal.{name}` |" for name in JournalSettings.model_fields]
    options = re.findall(r'"(\w+_ms)"', Path(backends.__file__).read_text(encoding="utf-8"))
    assert "read_timeout_ms" in options
    names += [f"| `{name}` |" for name in options]
    assert [name for name in names if name not in page] == []


def test_every_variable_of_the_environment_is_documented() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    sources = [*(REPOSITORY / "featurestore").rglob("*.py"), *(REPOSITORY / "registry").rglob("*.py")]
    read = {name for path in sources for name in re.findall(r'"(FS_[A-Z_]+)"', path.read_text(encoding="utf-8"))}
    assert {"FS_SERVER_TOKEN", "FS_CRASH_AT"} <= read
    assert [name for name in sorted(read) if f"`{name}" not in page] == []


@pytest.mark.parametrize("page", [EXAMPLE / "README.md", REPOSITORY / "README.md"], ids=lambda page: page.parent.name)
def test_the_commands_of_a_readme_are_commands(page: Path) -> None:
    shown = [block for block in blocks(page.read_text(encoding="utf-8")) if block.language == "console"]
    lines = [shlex.split(line, comments=True) for block in shown for line, _ in commands(block)]
    found = [words[1:] for words in lines if words[0] == "fs"]
    assert found
    for words in found:
        context = fs.make_context("fs", words)
        name, command, rest = fs.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, rest, parent=context)


LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    EXAMPLE / "README.md",
    *sorted(DOCS.rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_leads_to_something(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for match in LINK.finditer(text):
        target, _, anchor = match[1].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        found = page.parent / target if target else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(match[0])
    assert broken == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


IMPORT = re.compile(r"^ *from (featurestore[\w.]*) import (\([^)]*\)|[\w, ]+)", re.MULTILINE)


def test_pages_import_each_name_from_the_one_place_that_the_reference_tells() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| [^|]* \| `(featurestore[\w.]*)` \|$", page, re.MULTILINE)
    cells = nbformat.read(EXAMPLE / "training_set.ipynb", as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    sources += [block.text for each in PAGES for block in blocks(each.read_text(encoding="utf-8"))]
    sources += [path.read_text(encoding="utf-8") for path in (EXAMPLE / "features.py", TEMPLATE)]
    found = {(module, name) for text in sources for module, names in IMPORT.findall(text) for name in listed(names)}
    assert len(found) > 15
    assert {module for module, _ in found if not module.startswith("featurestore_registry")} <= set(told)
    for module, name in found:
        assert name in getattr(importlib.import_module(module), "__all__", [name]), (module, name)
        assert hasattr(importlib.import_module(module), name), (module, name)


def listed(names: str) -> list[str]:
    return [name.strip() for name in names.strip("()\n ").split(",") if name.strip()]


INSTALL = re.compile(r"pip install ((?:-\w+ |--[\w-]+ )*)([\w.'\[,\]]+)")


def test_everything_is_installed_from_a_checkout() -> None:
    """The package is on no index: a command that asks one for it would install nothing, or something else."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [
        path for folder in ("featurestore", "registry", "feature_repo") for path in (REPOSITORY / folder).rglob("*")
    ]
    found = []
    for path in {*PAGES, REPOSITORY / "Dockerfile", *sources}:
        if path.suffix in (".py", ".md", ".ipynb", "") and path.is_file():
            found += [match[2].strip("'") for match in INSTALL.finditer(path.read_text(encoding="utf-8"))]
    assert {".", ".[client]", ".[demo]"} <= set(found)
    extras = {extra for name in found for extra in name.removeprefix(".").strip("[]").split(",") if extra}
    assert [name for name in found if not name.startswith(".")] == []
    assert extras <= set(declared["optional-dependencies"])


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py(?:::\w+)*)`")


def test_every_test_that_a_page_names_is_there() -> None:
    named = {name for page in PAGES for name in NAMED_TEST.findall(page.read_text(encoding="utf-8"))}
    files = sorted({name.partition("::")[0] for name in named})
    assert [name for name in files if not (REPOSITORY / name).is_file()] == []
    modules = {file: module_of(REPOSITORY / file) for file in files}
    assert len(named) > 30
    for name in sorted(named):
        file, *parts = name.split("::")
        assert all(part.startswith(("test_", "Test")) for part in parts), name
        functools.reduce(getattr, parts, modules[file])  # an AttributeError names what is not there


def module_of(path: Path) -> ModuleType:
    """Return a file of tests as a module: the one that pytest has collected, if it has."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    spec = importlib.util.spec_from_file_location(f"named_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_promise_is_held_by_tests() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (P\d+) \|(.*)$", readme, re.MULTILINE))
    assert list(rows) == [f"P{number}" for number in range(1, 14)]
    assert [name for name, row in rows.items() if "::" not in "".join(NAMED_TEST.findall(row))] == []


@pytest.mark.slow(10)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    options = ["--fresh-env", "--fail-on-warning", "--nitpicky", "--quiet", "--doctree-dir", str(tmp_path / "trees")]
    run_here([sys.executable, "-m", "sphinx", *options, "docs", str(tmp_path / "site")])
    site = tmp_path / "site"
    assert "What time means" in (site / "index.html").read_text(encoding="utf-8")
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    assert undocumented_commands(site, inventory) == []
    assert undocumented_names(inventory) == []
    assert "featurestore.training.TrainingSet.warnings" in inventory["py:attribute"]
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert unexplained_aliases(page) == []
    assert not re.search(r"(notices|remedies)\.[a-z_]+</", page)  # functions of ours


def unexplained_aliases(page: str) -> list[str]:
    """Return the aliases of types that signatures on the built page show and its head does not explain."""
    head, *signatures = page.split('<dt class="sig')
    shown = "".join(text.partition("</dt>")[0] for text in signatures)
    words = set(re.findall(r'<span class="pre">([A-Z]\w*)</span>', shown))
    ours = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "featurestore").rglob("*.py"))
    aliases = words.intersection(re.findall(r"^([A-Z]\w*) = ", ours, re.MULTILINE))
    assert {"Instant", "Views"} <= aliases
    return sorted(alias for alias in aliases if f'<span class="pre">{alias}</span></code></p></td>' not in head)


def run_here(command: Sequence[str]) -> str:
    """Run a command in the repository and return what it printed; fail when it does."""
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow(15)
def test_the_notebook_runs(example_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(EXAMPLE / "training_set.ipynb", as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []  # committed as it is before it runs
    (example_repo / "make_sources.py").write_bytes((EXAMPLE / "make_sources.py").read_bytes())
    monkeypatch.setenv("MPLCONFIGDIR", str(example_repo))
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(example_repo)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") == 3
    assert shown.count("text/html") >= 4
    page = "".join(output["data"].get("text/html", "") for output in outputs if "data" in output)
    assert "33,678" in page
    assert "0 answers of views without windows (by a separate query)" in page
    assert [output for output in outputs if output["output_type"] == "stream"] == []
