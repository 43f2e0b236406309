"""What an apply would do, and doing it."""

from featurestore.plan.applying import apply_plan, check_allowed
from featurestore.plan.changes import Loss, Plan, Step
from featurestore.plan.classes import ChangeClass, Difference
from featurestore.plan.planning import check_readable, make_plan

__all__ = [
    "ChangeClass",
    "Difference",
    "Loss",
    "Plan",
    "Step",
    "apply_plan",
    "check_allowed",
    "check_readable",
    "make_plan",
]
