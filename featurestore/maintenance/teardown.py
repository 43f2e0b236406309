"""Deleting all data of a project whose definitions are gone."""

from __future__ import annotations

from featurestore.consistency.ownership import Ownership
from featurestore.consistency.remains import find_remains, with_remains
from featurestore.errors import FeatureStoreError, PlanError
from featurestore.ledger.journal import catch_up_quietly
from featurestore.offline.interface import MAX_SEQUENCE, TableId
from featurestore.online.records.keys import view_prefix
from featurestore.quarantine.cleaning import clean_gone
from featurestore.quarantine.files import tables_of
from featurestore.served.retaining import drop_all
from featurestore.statistics.gone import forget_gone
from featurestore.steps import step
from featurestore.workspace import Readers, Workspace

COMMAND = "fs teardown --allow-destroy"


def drop_data(workspace: Workspace) -> None:
    """Delete every offline table and online record of the project, those of old generations included.

    Raises PlanError while definitions are registered, because their data is still in use.
    """
    if workspace.snapshot().records:
        raise PlanError(
            f"Project {workspace.project!r} still has definitions.", hint="Another apply came meanwhile; look at it."
        )
    owned = Ownership(workspace)
    try:
        with step("teardown", f"delete the data of {workspace.project}"):
            tables = workspace.offline.tables(workspace.project)
            tables = [table for table in tables if owned.of_table(table, asked=True) is None]
            catch_up_quietly(workspace, tables, most=MAX_SEQUENCE)  # their logs go
            for view, generation in owned.parts():
                if owned.of_part(view, generation, asked=True) is None:
                    workspace.online.delete(view_prefix(workspace.project, view, generation))
            for table in tables:
                workspace.offline.clean(table, keep=None)
            for table in tables_of(workspace.offline, workspace.project):
                if owned.of_table(table, asked=True) is None:
                    clean_gone(workspace, table)
            drop_all(workspace)
            forget_gone(workspace)
    except FeatureStoreError as error:
        raise with_remains(workspace, error, finish=COMMAND) from error


def left_behind(workspace: Readers) -> list[str]:
    """Return what a teardown deletes beyond what its plan names: data that no definition uses, a line for each."""
    remains = find_remains(workspace)
    unknown = ["perhaps online records: the online store did not answer"] * (not remains.is_online_known)
    return remains.texts() + unknown


def check_teardown(workspace: Readers) -> None:
    """Raise MismatchError where data under the project's name is not this registry's to delete."""
    owned = Ownership(workspace)
    known = {TableId(workspace.project, view, generation) for view, generation in owned.parts()}
    owned.check(sorted(known | {*workspace.offline.tables(workspace.project)}, key=str))
