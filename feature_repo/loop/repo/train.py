"""Train a model: `python train.py`, as an alarm runs it. What it should know is in its environment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
from model import MODELS, Model
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurestore import FeatureStore, Label
from featurestore.training import TrainingSet

REPO = Path(__file__).parent
SERVICE = "delays_v1"
LATE = Label("outcome:late", horizon=timedelta(hours=36), name="late")
USED = ["dep_delay", "origin_delay_1d", "carrier_delay_1d", "carrier_delay_7d", "hour", "miles"]
"""Features of the service. Not the weather of the evening before: seven evenings do not teach what it means."""
TESTED = 0.25
"""The last quarter of the time tests."""


@dataclass(frozen=True)
class Trained:
    """A model of all rows, and how one of the earlier rows did on the later ones."""

    model: Model
    training: TrainingSet
    tested: pd.DataFrame
    """The later rows, and their ``score``."""
    auc: float
    left_out: int
    """Rows between those that train and those that test: the label's horizon lies there."""


def train(store: FeatureStore, name: str, start: datetime, end: datetime) -> Trained:
    """Train on the flights of [start, end) and what was known of each when its board was made up."""
    board = pd.read_parquet(REPO / "data" / "board.parquet")
    rows = board[(board["event_timestamp"] >= start) & (board["event_timestamp"] < end)]
    training = store.get_historical_features(rows, SERVICE, labels=[LATE]).save(name)
    learned, tested, left_out = training.split(at=training.to_pandas()["event_timestamp"].quantile(1 - TESTED))
    later = tested.to_pandas().dropna(subset=["late"])
    later["score"] = fitted(name, learned).scores(later)
    auc = float(roc_auc_score(later["late"].astype(bool), later["score"]))
    return Trained(fitted(name, training), training, later, auc, left_out)


def fitted(name: str, training: TrainingSet) -> Model:
    """Return the model of a set's rows."""
    known = training.to_pandas().dropna(subset=["late"])
    values = known[USED].astype("float64")
    means = values.mean()
    scaler, regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)).fit(
        values.fillna(means), known["late"].astype(bool)
    )
    return Model(
        name,
        SERVICE,
        name,
        USED,
        means.tolist(),
        scaler.scale_.tolist(),
        regression.coef_[0].tolist(),
        float(regression.intercept_[0]),
    )


def main() -> None:
    """Train the next model on the last window that the alarm is about: in the one before, the change had just begun."""
    report = json.loads(Path(os.environ["FS_ALARM_REPORT"]).read_text(encoding="utf-8"))
    start, end = (datetime.fromisoformat(report[name]) for name in ("start", "until"))
    name = f"delays_{1 + len(list(MODELS.glob('*.json')))}"
    with FeatureStore(REPO) as store:
        trained = train(store, name, start, end)
    trained.model.save()
    print(f"{name} is trained on {len(trained.training):,} flights: AUC {trained.auc:.3f} on the last quarter of them.")


if __name__ == "__main__":
    main()
