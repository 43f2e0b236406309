"""Promise P12: what is loaded at start-up, and that the public names are what they say."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import featurestore
from featurestore.cli.main import COMMANDS

pytestmark = pytest.mark.counts_processes

HEAVY = (
    "alembic", "deltalake", "duckdb", "fastapi", "lmdb", "mlflow", "msgspec", "numpy", "pandas", "polars",
    "prometheus_client", "pyarrow", "pydantic", "pydantic_settings", "pyspark", "redis", "requests", "rich",
    "sqlalchemy", "sqlglot", "starlette", "tensorflow", "torch", "uvicorn", "yaml",
)  # fmt: skip


def loaded_after(code: str) -> set[str]:
    """Return which of the heavy modules a fresh interpreter has loaded after running ``code``."""
    report = f"{code}\nimport sys\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    return set(found.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import featurestore") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["help", "help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"from featurestore.cli.main import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert loaded_after(code) == set()


def test_the_command_ends_without_a_last_search_for_garbage():
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from featurestore.cli.main import main\n"
        "sys.argv = ['fs', '--version']\n"
        "main()"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(found.stdout.split()[-1]) > 10_000


def test_the_package_is_the_command():
    found = subprocess.run([sys.executable, "-m", "featurestore", "--version"], capture_output=True, text=True)
    assert (found.returncode, found.stdout.split()[0]) == (0, "featurestore")


def test_definitions_load_no_backend():
    loaded = loaded_after("from featurestore import Entity, FeatureView, Field, ParquetSource")
    assert loaded <= {"pydantic"}


def test_errors_and_types_load_no_backend():
    assert loaded_after("import featurestore.errors, featurestore.types, featurestore.steps") == set()


@pytest.mark.parametrize("name", featurestore.__all__)
def test_every_public_name_is_there(name):
    assert getattr(featurestore, name).__name__ == name
    assert name in dir(featurestore)


def test_names_that_are_not_there_say_so():
    with pytest.raises(AttributeError, match="FeatureVeiw"):
        _ = featurestore.FeatureVeiw


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there_under_its_name(command):
    module = importlib.import_module(f"featurestore.cli.commands.{command.replace('-', '_')}")
    assert module.command.name == command


def test_every_error_is_listed_and_drawn():
    from featurestore import errors

    tree = errors.__doc__ or ""
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert name in errors.__all__
            if value.__module__ == errors.__name__:
                assert name in tree
                assert issubclass(value, errors.FeatureStoreError)
