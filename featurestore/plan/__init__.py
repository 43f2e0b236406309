"""What an apply would do, and doing it."""

from featurestore.plan.applying import apply_plan, check_allowed
from featurestore.plan.changes import Loss, Plan, Step
from featurestore.plan.classes import ChangeClass, Difference
from featurestore.plan.governed import governed
from featurestore.plan.history import AppliedRevision, RevisionDiff, compare, proposed, read_history, snapshot_at
from featurestore.plan.planning import as_if_applied, check_readable, make_plan
from featurestore.plan.promoting import plan_promotion
from featurestore.plan.rollback import keys_named, plan_rollback
from featurestore.plan.server_code import check_code

__all__ = [
    "AppliedRevision",
    "ChangeClass",
    "Difference",
    "Loss",
    "Plan",
    "RevisionDiff",
    "Step",
    "apply_plan",
    "as_if_applied",
    "check_allowed",
    "check_code",
    "check_readable",
    "compare",
    "governed",
    "keys_named",
    "make_plan",
    "plan_promotion",
    "plan_rollback",
    "proposed",
    "read_history",
    "snapshot_at",
]
