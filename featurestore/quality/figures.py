"""Figures of predictions beside labels: errors of numbers, of yes and no, of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Task = Literal["numbers", "yes/no", "classes"]
"""What is judged: numbers by their errors, scores of a yes or no, or classes."""
LEAST_CHANCE = 1e-15
"""A score of 0 or 1 that is wrong would have an infinite log loss: it counts as this far from it."""


def numbers(predicted: Floats, actual: Floats) -> dict[str, float | None]:
    """Return the errors of numbers; None of none."""
    import numpy as np

    if not len(actual):
        return dict.fromkeys(("mean_absolute_error", "root_mean_square_error", "bias"))
    errors = predicted - actual
    return {
        "mean_absolute_error": float(np.abs(errors).mean()),
        "root_mean_square_error": float(np.sqrt(np.square(errors).mean())),
        "bias": float(errors.mean()),
    }


def yes_or_no(predicted: Floats, actual: Floats) -> dict[str, float | None]:
    """Return the figures of scores in [0, 1] for labels that are 0 or 1; None where there is nothing to compare."""
    import numpy as np

    if not len(actual):
        return dict.fromkeys(("accuracy", "auc", "log_loss"))
    is_yes = actual == 1
    chance = np.clip(np.where(is_yes, predicted, 1 - predicted), LEAST_CHANCE, 1)
    return {
        "accuracy": float(((predicted >= 0.5) == is_yes).mean()),
        "auc": _auc(predicted, is_yes),
        "log_loss": float(-np.log(chance).mean()),
    }


def _auc(predicted: Floats, is_yes: npt.NDArray[np.bool_]) -> float | None:
    """Return how often a yes has a greater score than a no, ties half; None without a yes or a no."""
    import numpy as np

    yes = int(is_yes.sum())
    no = len(is_yes) - yes
    if not yes or not no:
        return None
    _, places, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places]  # of tied scores their mean rank
    return float((ranks[is_yes].sum() - yes * (yes + 1) / 2) / (yes * no))


def classes(predicted: npt.NDArray[Any], actual: npt.NDArray[Any]) -> dict[str, float | None]:
    """Return how often a class is right; None of none."""
    return {"accuracy": float((predicted == actual).mean()) if len(actual) else None}


FIGURES: Mapping[Task, Callable[[Any, Any], dict[str, float | None]]] = {
    "numbers": numbers,
    "yes/no": yes_or_no,
    "classes": classes,
}
