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
    greatest = float(np.abs(errors).max()) or 1.0  # no float holds the squares of all
    return {
        "mean_absolute_error": float(np.abs(errors).mean()),
        "root_mean_square_error": greatest * float(np.sqrt(np.square(errors / greatest).mean())),
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
    yes = int(is_yes.sum())
    no = len(is_yes) - yes
    if not yes or not no:
        return None
    return float((_ranks(predicted)[is_yes].sum() - yes * (yes + 1) / 2) / (yes * no))


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value from 1 on; of tied ones their mean rank."""
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Floats = (last - (counts - 1) / 2)[places]
    return found


def classes(predicted: npt.NDArray[Any], actual: npt.NDArray[Any]) -> dict[str, float | None]:
    """Return how often a class is right; None of none."""
    return {"accuracy": float((predicted == actual).mean()) if len(actual) else None}


FIGURES: Mapping[Task, Callable[[Any, Any], dict[str, float | None]]] = {
    "numbers": numbers,
    "yes/no": yes_or_no,
    "classes": classes,
}


def tasks_of(figure: str) -> tuple[Task, ...]:
    """Return the tasks that have a figure."""
    import numpy as np

    nothing = np.zeros(0)
    return tuple(task for task, figures in FIGURES.items() if figure in figures(nothing, nothing))


def chance(figure: str, task: Task, predicted: Any, actual: Any, groups: npt.NDArray[np.int64]) -> float:
    """Return the standard error of a figure, where rows of one group are one outcome: they stand and fall together.

    Each row has its influence on the figure; of a group their sum counts. Without a group more it is 0.
    """
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # errors beyond what a float holds
        sums = np.bincount(groups, _influences(figure, task, predicted, actual))
        count = int(np.count_nonzero(np.bincount(groups)))
        found = np.sqrt(np.square(sums).sum() * count / max(count - 1, 1)) / len(groups)
    return float(found) if np.isfinite(found) else 0.0


def _influences(figure: str, task: Task, predicted: Any, actual: Any) -> Floats:
    """Return by how much each row moves a figure, times the number of rows: their sum is 0."""
    import numpy as np

    if figure == "auc":
        return _influences_on_auc(predicted, actual == 1)
    own: Floats
    if figure == "accuracy":
        own = (predicted == actual if task == "classes" else (predicted >= 0.5) == (actual == 1)).astype(np.float64)
    elif figure == "log_loss":
        own = -np.log(np.clip(np.where(actual == 1, predicted, 1 - predicted), LEAST_CHANCE, 1))
    else:
        own = {"mean_absolute_error": np.abs, "root_mean_square_error": np.square, "bias": np.positive}[figure](
            predicted - actual
        )
    moved: Floats = own - own.mean()
    if figure == "root_mean_square_error" and (root := float(np.sqrt(own.mean()))):
        moved /= 2 * root
    return moved


def _influences_on_auc(predicted: Floats, is_yes: npt.NDArray[np.bool_]) -> Floats:
    """Return DeLong's placements, centred: of each yes the share of noes below it, of each no that of yeses above."""
    import numpy as np

    ranks, found = _ranks(predicted), np.zeros(len(predicted))
    for mine, sign in ((is_yes, 1), (~is_yes, -1)):
        placed = sign * (ranks[mine] - _ranks(predicted[mine])) / (~mine).sum()
        found[mine] = (placed - placed.mean()) * len(predicted) / mine.sum()
    return found
