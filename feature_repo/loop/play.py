"""The whole loop, from the first look at the data to a model that is trained again: `make loop`.

Five weeks are played: the clock of the store and of the feature server is moved from night to night and from board to
board, everything else is as it would be. Each step is told here, and shown on a page with its pictures.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from featurestore import FeatureStore
from featurestore.errors import MaterializationError

sys.path.insert(0, str(Path(__file__).resolve().parent / "repo"))

import model
import train
from page import ENVIRONMENT, Page, console
from serving import Clock, application, ask, feature_server
from world import DAY, World

HERE = Path(__file__).resolve().parent
PLAYED = HERE / "played"
RUN_AFTER = timedelta(minutes=10)
FIRST, SECOND = "delays_1", "delays_2"
FEATURE = "dep_delay"


def main() -> None:
    """Play the loop; the first step that fails ends it with its own message."""
    parser = argparse.ArgumentParser(description="Play the whole loop on flights of 2013.")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth plane only")
    parser.add_argument("--days", type=int, default=7, metavar="N", help="length of each of the five windows")
    options = parser.parse_args()
    started = time.monotonic()
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    logging.getLogger("featurestore").setLevel(logging.ERROR)  # that clocks are apart: one of them is played
    warnings.simplefilter("ignore")  # what they say stands in the certificates, which the page shows
    shutil.rmtree(PLAYED, ignore_errors=True)
    shutil.copytree(HERE / "repo", PLAYED, ignore=shutil.ignore_patterns("__pycache__"))
    model.MODELS = PLAYED / "data" / "models"
    train.REPO = PLAYED
    page = Page(PLAYED)
    window = timedelta(days=options.days)
    definitions = (PLAYED / "features.py").read_text(encoding="utf-8")
    (PLAYED / "features.py").write_text(
        definitions.replace("window=WEEK", f"window=timedelta(days={options.days})"), encoding="utf-8"
    )
    Loop(World(PLAYED / "data", options.every, window), page).play()
    page.write(PLAYED / "loop.html")
    console.print(f"\n[bold]Done in {time.monotonic() - started:.0f} seconds.[/bold]")
    console.print(f"Each step with its pictures: {shown(PLAYED / 'loop.html')}")
    console.print(
        f"Look around with: fs --repo {shown(PLAYED)} status, or in a browser: fs --repo {shown(PLAYED)} catalog"
    )


def shown(path: Path) -> str:
    """Return a path as a person would type it."""
    return str(path).replace(f"{Path.cwd()}/", "")


class Loop:
    """The steps, one after the other."""

    def __init__(self, world: World, page: Page) -> None:
        self.world, self.page = world, page
        self.night = world.served_from
        self.clock = Clock(self.night + RUN_AFTER)
        self.store = FeatureStore(PLAYED, clock=self.clock)

    def play(self) -> None:
        """Play all of them."""
        self.look()
        self.define()
        self.validate()
        self.learn()
        self.certify()
        self.register()
        self.serve()
        self.compare()
        self.watch()
        self.drift()
        self.train_again()
        self.judge()
        self.promote()
        self.store.close()

    def look(self) -> None:
        """Profile what is there."""
        self.page.step("Look", "Nine months of flights and weather are there, a file a month. What do they hold?")
        self.world.begin()
        self.page.show(self.store.profile(f"{PLAYED}/data/observations/*.parquet"))

    def define(self) -> None:
        """Apply the definitions."""
        self.page.step("Define", "features.py has the features, what is expected of them, and what is watched.")
        self.page.fs("apply", "--yes")

    def validate(self) -> None:
        """Run for the first time."""
        self.page.step("Validate", "The first run checks every row: a storm of 1,048 miles an hour is set aside.")
        self.page.text("\n".join(map(str, self.store.materialize_incremental())))
        self.page.fs("quarantine", "list", "weather", "--rows")

    def learn(self) -> None:
        """Train the first model."""
        self.page.step("Train", "Seven weeks of flights, each with what was known when its board was made up.")
        start, end = self.world.learn_from, self.world.served_from
        self.first = train.train(self.store, FIRST, start, end)
        self.first.model.save()
        self.page.show(self.first.training)
        self.page.picture(roc(self.first), f"Tested on the last quarter of the time: AUC {self.first.auc:.3f}.")
        console.print(f"AUC {self.first.auc:.3f} on {len(self.first.tested):,} later flights")

    def certify(self) -> None:
        """Show what the training set is worth."""
        self.page.step(
            "Certify", "Nothing in the training set was unknown at the time of its row: checked by another way."
        )
        self.page.show(self.first.training.certificate, told=False)
        console.print(f"{self.first.training.certificate.rows:,} rows, none knows its future")

    def register(self) -> None:
        """Say what reads which features."""
        self.page.step(
            "Register", "The set is kept under the model's name. From now on plans say whom a change concerns."
        )
        model.promote(FIRST)
        self.page.fs("consumer", "add", FIRST, "--service", train.SERVICE, "--owner", "flight-ops")
        self.page.fs("training-sets")

    def serve(self) -> None:
        """Play two weeks, with a night on which the weather is not as expected."""
        self.page.step(
            "Serve", "Two weeks: a file each night, a board every three hours, scored by a small application."
        )
        flights = 0
        with self._serving() as client:
            for night in self._nights(self.world.changed_from):
                if night == self.world.bad_night:
                    self._blocked(night)
                else:
                    self._run(night)
                flights += self._ask(client, night)
        self.page.text(f"{flights:,} flights were scored.")

    def _blocked(self, night: datetime) -> None:
        """Let a bad file arrive: nothing is committed. The next morning it is sent again as it should be."""
        try:
            self._run(night, is_bad=True)
        except MaterializationError as error:
            self.page.text(f"{night:%d %B}: {error}")
        else:
            raise SystemExit("The bad night was not blocked.")
        self.world.deliver(night)

    def compare(self) -> None:
        """Compare what was served with what should have been."""
        self.page.step("Compare", "Was what the model got what it should have got? Every difference has a cause.")
        found = self.store.parity(train.SERVICE, self.world.served_from, self.world.changed_from)
        self.page.show(found)
        if found.unexplained:
            raise SystemExit("A difference is not explained.")

    def watch(self) -> None:
        """Run the monitor while all is well."""
        self.page.step("Watch", "Two windows of a week beside what the model was trained on.")
        self.page.show(self.store.monitor("delays", self.world.changed_from))

    def drift(self) -> None:
        """Play two more weeks, in which something changes."""
        self.page.step("Drift", "Two more weeks. Something has changed, and nobody has said so.")
        with self._serving() as client:
            self._play(client, self.world.alarm_at)
        self.page.picture(
            self._drawn(), "What the model got as the plane's last delay: the middle, and the middle half."
        )

    def train_again(self) -> None:
        """Let the alarm start the training."""
        self.page.step(
            "Find out, and train again", "The monitor says what changed and since when. Its alarm starts train.py."
        )
        until = self.world.alarm_at.isoformat()
        command = shlex.join([sys.executable, "train.py"])
        self.page.fs("monitor", "delays", "--until", until, "--html", "monitor.html", "--on-alarm", command, code=3)
        self.page.link("The page of the monitor", "monitor.html")

    def judge(self) -> None:
        """Let both models score a week that neither has seen."""
        self.page.step("Judge", "A week that neither has seen: both score it, and the answers of the old one count.")
        with self._serving() as client:
            self._play(client, self.world.end)
        for night in self._nights(self.world.last):
            self._run(night)
        start, late = self.world.alarm_at, train.LATE
        self.page.show(self.store.performance(train.SERVICE, late, "late", start, self.world.end))
        self.page.picture(
            self._judged(), "Each day of the five weeks, by model: higher is better, then lower is better."
        )

    def promote(self) -> None:
        """Let the new model count, and watch what it was trained on."""
        self.page.step(
            "Promote", "The answers of the new one count from now on, and what it was trained on is the baseline."
        )
        model.promote(SECOND)
        definitions = PLAYED / "features.py"
        definitions.write_text(definitions.read_text(encoding="utf-8").replace(FIRST, SECOND), encoding="utf-8")
        self.page.fs("consumer", "add", SECOND, "--service", train.SERVICE, "--owner", "flight-ops")
        self.page.fs("consumer", "remove", FIRST)
        self.page.fs("apply", "--yes")
        self.page.show(self.store.monitor("delays", self.world.end))

    @contextmanager
    def _serving(self) -> Iterator[httpx.Client]:
        """Run the feature server and the application; what they logged is in files afterwards."""
        with feature_server(PLAYED, self.clock) as features, application(PLAYED, features) as client:
            yield client

    def _nights(self, until: datetime) -> Iterator[datetime]:
        """Yield the nights from the first that is not played to an instant."""
        while self.night < until:
            yield self.night
            self.night += DAY

    def _run(self, night: datetime, *, is_bad: bool = False) -> None:
        """Let the files of a night arrive, and read them."""
        self.world.deliver(night, is_bad=is_bad)
        self.clock.to(night + RUN_AFTER)
        self.store.materialize_incremental()

    def _ask(self, client: httpx.Client, night: datetime) -> int:
        """Ask for the boards of a day; return how many flights were on them."""
        flights = 0
        for asked_at, board in self.world.boards(night):
            self.clock.to(asked_at)
            ask(client, board)
            flights += len(board)
        return flights

    def _play(self, client: httpx.Client, until: datetime) -> None:
        for night in self._nights(until):
            self._run(night)
            self._ask(client, night)

    def _drawn(self) -> Figure:
        """Draw what was served, day by day."""
        served = self.store.read_served(train.SERVICE).to_pandas()
        days = (
            served.groupby(served["served_at"].dt.floor("D"))[f"value.{FEATURE}"].quantile([0.25, 0.5, 0.75]).unstack()
        )
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(days.index, days[0.25], days[0.75], alpha=0.3)
        axes.plot(days.index, days[0.5])
        axes.set(ylabel="minutes?", yscale="symlog")
        self._mark(axes)
        return figure

    def _judged(self) -> Figure:
        """Draw how the models did, day by day."""
        found = self.store.label_served(train.SERVICE, train.LATE).rows.to_pandas()
        predicted = self.store.join_predictions(train.SERVICE).rows.to_pandas()
        known = predicted.merge(found[["request_id", "row", "label.late"]], on=["request_id", "row"])
        known = known.dropna(subset="label.late").astype({"label.late": bool})
        figure = Figure(figsize=(8, 4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for name, rows in known.groupby("model"):
            days = {day: of_day for day, of_day in rows.groupby(rows["served_at"].dt.floor("D")) if _both(of_day)}
            for axes, measure in ((above, roc_auc_score), (below, log_loss)):
                figures = [measure(of_day["label.late"], of_day["prediction.late"]) for of_day in days.values()]
                axes.plot(list(days), figures, label=name)
        above.set_ylabel("AUC")
        below.set_ylabel("log loss")
        above.legend(frameon=False)
        for axes in (above, below):
            self._mark(axes)
        return figure

    def _mark(self, axes: Axes) -> None:
        axes.axvline(self.world.changed_from, linestyle=":", color="#c0392b")
        axes.spines[["top", "right"]].set_visible(False)


def _both(rows: pd.DataFrame) -> bool:
    """Tell whether some flights were late and some were not: a day without either has no AUC."""
    return rows["label.late"].nunique() == 2


def roc(trained: train.Trained) -> Figure:
    """Draw how many late flights are found at the price of how many others."""
    figure = Figure(figsize=(4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(*roc_curve(trained.tested["late"].astype(bool), trained.tested["score"])[:2])
    axes.plot([0, 1], [0, 1], linestyle=":", color="#777777")
    axes.set(xlabel="of those in time", ylabel="found, of the late")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\nStopped. Running it again starts afresh.")
        sys.exit(130)
