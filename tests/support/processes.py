"""What commands that tests run begin with: their environment, and what is imported before they are forked."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import tempfile


def plain_environment() -> dict[str, str]:
    """Return the environment without settings of ours, and without what makes a process count its coverage.

    For whole walks through the product, whose lines other tests count too: counting takes as long again.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("FS_", "COVERAGE_"))}


LIBRARIES = (
    "alembic.command",
    "deltalake",
    "duckdb",
    "lmdb._envid",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "redis",
    "sqlalchemy.dialects.sqlite",
)


def be_ready_to_fork(*packages: str) -> None:
    """Import the libraries and all modules of our packages, once for all children, and keep them from being copied."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for package in packages:
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}."):
            importlib.import_module(module.name)
    _use_a_registry()
    gc.collect()
    gc.freeze()  # a child's collections then leave alone what it shares with this process


def _use_a_registry() -> None:
    """Let SQLAlchemy compile the statements that nearly every command runs."""
    from featurestore_registry.records import Change, Record, fingerprint
    from featurestore_registry.sql.registry import open_registry

    record = Record("kind", "project", "name", {}, fingerprint({}))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_registry(f"sqlite:///{folder}/registry.db") as registry,
    ):
        definitions, ledger = registry.definitions, registry.ledger
        changes = [Change("put", record.kind, record.name, record)]
        head = definitions.chain("project").head
        definitions.apply("project", head, changes, author="", message="", commit="")
        definitions.read("project")
        for _ in range(2):
            ledger.append("project", "kind", "key", {})
        ledger.latest("project", "kind", "key")
        ledger.scan("project", "kind")
