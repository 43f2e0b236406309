"""Take the picture of the catalog that README and documentation show: ``python docs/catalog_picture.py``.

It shows the example as `make demo` leaves it, and needs Chromium on PATH.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "_static" / "catalog.png"
PAGE = "feature_view/route_delays"
SIZE = (1180, 1110)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync")


def main() -> None:
    """Serve the example's catalog, and let the browser write what it sees."""
    repo = ROOT / "feature_repo"
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None or not (repo / "data" / "registry.db").exists():
        sys.exit("This needs Chromium on PATH, and the example as `make demo` leaves it.")
    fs = [sys.executable, "-m", "featurestore", "catalog", "--repo", str(repo), "--port", "0", "--no-browser"]
    with subprocess.Popen(fs, stdout=subprocess.PIPE, text=True) as server, tempfile.TemporaryDirectory() as profile:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        shot = [f"--screenshot={PICTURE}", f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={profile}"]
        subprocess.run([chromium, *QUIET, *shot, f"{address}/{PAGE}"], check=True, capture_output=True, timeout=60)
        server.send_signal(signal.SIGINT)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
