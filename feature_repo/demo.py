"""The whole product on real data, one step after the other: `make demo`.

Writes the example's sources, applies the definitions, materializes, builds a training set of all flights, serves,
asks over HTTP for three flights, pushes their landings, stops cleanly, and reads the windows as time passes. Embedded
defaults only: nothing else needs to run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

REPO = Path(__file__).resolve().parent
DATA = REPO / "data"
TRAINING = DATA / "training.parquet"
SERVICE = "departure_delay_v1"
FS = Path(sys.executable).with_name("fs")
WINDOWS = {
    "mean 1 h": "arr_delay_mean_1h",
    "late 1 h": "late_1h",
    "mean 1 day": "arr_delay_mean_1d",
    "late 1 day": "late_1d",
    "mean 7 days": "arr_delay_mean_7d",
    "mean 30 days": "arr_delay_mean_30d",
}
INSTANTS = {
    "now": timedelta(0),
    "in 30 min": timedelta(minutes=30),
    "in 70 min": timedelta(minutes=70),
    "in 26 hours": timedelta(hours=26),
    "in 8 days": timedelta(days=8),
    "in 40 days": timedelta(days=40),
}
"""When the windows are read."""
# The demo stands for itself: settings of the caller's own store must not leak into it.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("FS_") or key == "FS_CRASH_AT"}
console = Console(highlight=False, width=max(100, Console().width))


def main() -> None:
    """Run every step; the first that fails ends the demo with its own message."""
    started = time.monotonic()
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    say("Flights from New York: will this one arrive more than 15 minutes late?")
    for leftover in (DATA, REPO / ".featurestore"):
        if leftover.exists():
            console.print(
                f"[dim]Starting afresh: removing {leftover.relative_to(REPO.parent)} of an earlier run.[/dim]"
            )
            shutil.rmtree(leftover)
    step(1, "Write the sources: 336,776 flights of 2013, moved by whole weeks so that they end now")
    run(sys.executable, REPO / "make_sources.py", "--shift-to-now")
    step(2, "Register the definitions of features.py")
    fs("apply", "--yes")
    step(3, "Bring the rows into the offline store, and the newest of each entity into the online store")
    fs("materialize")
    step(4, "Build a training set: every flight, with what was known at its scheduled departure")
    frame = "data/departures.parquet"
    fs("training-set", "--entities", frame, "--service", SERVICE, "--out", TRAINING, "--full-feature-names")
    show_training_set()
    step(5, "Serve the same features over HTTP, ask for three flights, and push their landings")
    landed = ask_server()
    step(6, "Let time pass: the windows move, though nothing is pushed or materialized any more")
    show_windows(landed)
    console.print()
    say(f"Done in {time.monotonic() - started:.0f} seconds. Look around with: {show(FS, '--repo', REPO, 'status')}")
    say(f"In a browser, at http://127.0.0.1:6571/p/nyc_flights, with: {show(FS, '--repo', REPO, 'catalog')}")


def say(text: str) -> None:
    """Print a headline."""
    console.print(text, style="bold")


def step(number: int, title: str) -> None:
    """Announce a step."""
    console.print(f"\n[bold cyan]{number}.[/bold cyan] [bold]{title}[/bold]")


def show(*command: Any) -> str:
    """Return a command as a person would type it."""
    texts = [Path(sys.executable).name if part == sys.executable else str(part) for part in command]
    return " ".join(text.replace(f"{Path.cwd()}/", "").replace(f"{REPO}/", "") for text in texts)


def run(*command: Any) -> None:
    """Run a command in the feature repo, its output passing through; end the demo when it fails."""
    console.print(f"[dim]$ {show(*command)}[/dim]")
    started = time.monotonic()
    finished = subprocess.run([str(part) for part in command], env=ENVIRONMENT, cwd=REPO, check=False)
    if finished.returncode != 0:
        console.print(f"[red]This step failed with exit code {finished.returncode}.[/red]")
        sys.exit(finished.returncode)
    console.print(f"[dim]took {time.monotonic() - started:.1f} s[/dim]")


def fs(*arguments: Any) -> None:
    """Run the command line of the feature store."""
    run(FS, *arguments)


def show_training_set() -> None:
    """Print what came out, and how a few features relate to the label."""
    connection = duckdb.connect()
    relation = connection.from_arrow(pq.read_table(TRAINING))
    rows = relation.aggregate("count(*)").fetchall()[0][0]
    console.print(
        f"{rows:,} rows with {len(relation.columns)} columns in {TRAINING.relative_to(REPO.parent)}. For example:"
    )
    table = Table("last delay of the plane", "flights", "late", "share late", box=None, header_style="bold")
    query = """
        SELECT CASE WHEN plane_status__last_delay IS NULL THEN 'not known'
                    WHEN plane_status__last_delay <= 15 THEN 'up to 15 minutes'
                    ELSE 'more than 15 minutes' END AS last_delay,
               count(*), count(*) FILTER (late), avg(late::INT)
        FROM read_parquet($file) WHERE late IS NOT NULL GROUP BY ALL ORDER BY 1
    """
    for label, flights, late, share in connection.execute(query, {"file": str(TRAINING)}).fetchall():
        table.add_row(label, f"{flights:,}", f"{late:,}", f"{share:.1%}")
    console.print(table)


def ask_server() -> dict[str, list[Any]]:
    """Start a server on a free port, ask it for three flights, push three landings, stop it; return what was pushed."""
    command = [str(FS), "serve", "--port", "0"]
    console.print(f"[dim]$ {show(*command)}[/dim]")
    server = subprocess.Popen(command, env=ENVIRONMENT, cwd=REPO, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        words = (word.rstrip(".") for line in server.stdout for word in line.split())
        url = next((word for word in words if word.startswith("http://")), None)
        if url is None:
            console.print("[red]The server did not start.[/red]")
            sys.exit(server.wait(timeout=20) or 1)
        flights = next_flights(3)
        answer, took = post(f"{url}/v1/online-features", request_body(flights))
        console.print(f"[dim]{took}; the year of flights is over, and what is too old says so[/dim]")
        show_answer(flights, answer)
        landed = landings(flights)
        for _ in range(2):
            answer, took = post(f"{url}/push", {"source": "landings", "rows": landed})
            events = answer["views"]["carrier_recent"]["events"]
            counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in events.items())
            console.print(f"[dim]{took}[/dim] carrier_recent: {counts}")
    finally:
        server.terminate()
        code = server.wait(timeout=20)
    console.print(f"[dim]The server stopped cleanly (exit code {code}).[/dim]")
    return landed


def post(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Send a request to our server; return its answer, and how long it took."""
    console.print(f"[dim]$ curl -X POST {url} -d '{json.dumps(body)[:160]}…'[/dim]")
    request = urllib.request.Request(  # noqa: S310 - our own server on loopback
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started = time.monotonic()
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - the same
        answer = json.load(response)
    return answer, f"answered in {(time.monotonic() - started) * 1000:.1f} ms"


def next_flights(count: int) -> list[dict[str, Any]]:
    """Return the last departures with a known plane and destination, as if they were to leave again now."""
    leaves_at = (datetime.now(UTC) + timedelta(minutes=45)).replace(second=0, microsecond=0)
    query = f"""
        SELECT carrier, flight, origin, dest, tailnum, distance
        FROM read_parquet($departures) SEMI JOIN read_parquet($airports) AS airports ON dest = airports.faa
        WHERE tailnum IS NOT NULL ORDER BY event_timestamp DESC, flight LIMIT {count}
    """
    files = {name: str(DATA / f"{name}.parquet") for name in ("departures", "airports")}
    found = duckdb.connect().execute(query, files)
    names = [column[0] for column in found.description]
    return [{**dict(zip(names, row, strict=True)), "sched_dep": leaves_at.isoformat()} for row in found.fetchall()]


def landings(flights: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return columns in which the flights have just landed, 55, 20 and 0 minutes late."""
    now = datetime.now(UTC)
    return {
        **{key: [flight[key] for flight in flights] for key in ("carrier", "dest", "tailnum")},
        "flight_id": [1_000_001 + place for place in range(len(flights))],
        "arrived_at": [(now - timedelta(minutes=place)).isoformat() for place in range(1, len(flights) + 1)],
        "arr_delay": [55.0, 20.0, 0.0][: len(flights)],
    }


def show_windows(landed: dict[str, list[Any]]) -> None:
    """Print the windows of one carrier at several instants, by a clock that is moved."""
    from featurestore import FeatureStore

    carrier, now_us = landed["carrier"][0], time.time_ns() // 1000
    names = [f"carrier_recent:{window}" for window in WINDOWS.values()]
    console.print(f"[dim]Delays of {carrier}: the mean, and how many flights were more than 15 minutes late.[/dim]")
    table = Table("read", *WINDOWS, box=None, header_style="bold")
    for text, later in INSTANTS.items():
        moved_us = now_us + later // timedelta(microseconds=1)
        with FeatureStore(REPO, clock=partial(int, moved_us)) as store:
            answer = store.get_online_features(names, [{"carrier": carrier}]).to_dict()
        cells = (answer[name][0] for name in WINDOWS.values())
        table.add_row(text, *("null" if cell is None else f"{cell:,.5g}" for cell in cells))
    console.print(table)


def request_body(flights: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the request for some flights."""
    return {
        "feature_service": SERVICE,
        "full_feature_names": True,
        "entities": {key: [flight[key] for flight in flights] for key in ("carrier", "origin", "dest", "tailnum")},
        "request_data": {key: [flight[key] for flight in flights] for key in ("sched_dep", "distance")},
    }


def show_answer(flights: Sequence[dict[str, Any]], answer: dict[str, Any]) -> None:
    """Print the answer, a column a flight; what is not PRESENT says what it is."""
    table = Table(box=None, header_style="bold")
    for head in ("feature", *("{carrier} {flight} {origin}-{dest}".format(**flight) for flight in flights)):
        table.add_column(head, no_wrap=True)
    for place, name in enumerate(answer["names"]):
        cells = []
        for row, statuses in zip(answer["rows"], answer["status"], strict=True):
            value, status = row[place], statuses[place]
            shown = f"{value:,.6g}" if isinstance(value, float) else str(value)
            cells.append(shown if status == "PRESENT" else f"[dim]{status}[/dim]")
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        console.print("\nStopped. Running it again starts afresh.")
        sys.exit(130)
