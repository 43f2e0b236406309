"""The model: a logistic regression as JSON, which is read without running anything that it says."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

MODELS = Path(__file__).parent / "data" / "models"
CHAMPION = "champion"
"""A file with the name of the model whose answers count."""


@dataclass(frozen=True)
class Model:
    """What `train.py` learned."""

    name: str
    service: str
    training_set: str
    """The name of the saved set: what the model was trained on can be built again."""
    features: list[str]
    means: list[float]
    """The mean of each feature, which takes the place of a null."""
    scales: list[float]
    weights: list[float]
    intercept: float

    def scores(self, features: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Return how likely each row is late, 0 to 1."""
        values = features[self.features].apply(pd.to_numeric).to_numpy(np.float64, na_value=np.nan)
        scaled = np.where(np.isnan(values), 0.0, (values - self.means) / self.scales)
        return 1 / (1 + np.exp(-np.clip(scaled @ np.array(self.weights) + self.intercept, -500, 500)))

    def save(self) -> None:
        """Write it where the application finds it."""
        MODELS.mkdir(parents=True, exist_ok=True)
        path = MODELS / f"{self.name}.json"
        path.with_suffix(".new").write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        path.with_suffix(".new").replace(path)


def load_all() -> list[Model]:
    """Return the models, the one whose answers count first."""
    found = [Model(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(MODELS.glob("*.json"))]
    champion = (MODELS / CHAMPION).read_text(encoding="utf-8")
    return sorted(found, key=lambda model: model.name != champion)


def promote(name: str) -> None:
    """Let the answers of a model count from now on."""
    (MODELS / CHAMPION).write_text(name, encoding="utf-8")
