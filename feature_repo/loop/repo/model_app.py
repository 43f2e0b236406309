"""An application that answers which flights will be late: `uvicorn model_app:app`.

It asks the feature server for the features, scores them by every model that there is, logs what each made of them, and
answers with the scores of the one that counts.
"""

from __future__ import annotations

import os
from datetime import datetime

from fastapi import FastAPI
from model import load_all
from pydantic import BaseModel

from featurestore.client import FeatureClient

app = FastAPI(title="Which flights will be late?")
client = FeatureClient(os.environ["FEATURES_URL"])
KEYS = ("tailnum", "carrier", "origin", "dest")


class Flight(BaseModel):
    """A line of the board."""

    flight_id: int
    tailnum: str
    carrier: str
    origin: str
    dest: str
    sched_dep: datetime
    distance: int


class Answer(BaseModel):
    """How likely each flight is late, in the order asked."""

    model: str
    late: list[float]


@app.post("/late")
def late(flights: list[Flight]) -> Answer:
    """Score a board."""
    champion, *others = load_all()
    found = client.get_online_features(
        champion.service,
        entities={key: [getattr(flight, key) for flight in flights] for key in KEYS},
        request_data={
            "flight_id": [flight.flight_id for flight in flights],
            "sched_dep": [flight.sched_dep.isoformat() for flight in flights],
            "distance": [flight.distance for flight in flights],
        },
    )
    features = found.to_pandas()
    for model in (champion, *others):
        client.log_prediction(found.request_id, {"late": model.scores(features).tolist()}, model=model.name)
    return Answer(model=champion.name, late=champion.scores(features).tolist())
