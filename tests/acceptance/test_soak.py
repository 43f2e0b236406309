"""The soak runs, and tells a leak from none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.processes import plain_environment

from benchmarks.load import Load
from benchmarks.soak import Sample, verdict


def samples(memory: Sequence[float], descriptors: Sequence[int]) -> list[Sample]:
    load = Load(**dict.fromkeys(Load.__dataclass_fields__, 1))
    return [Sample(1.0, load, mib, mib, count, 2) for mib, count in zip(memory, descriptors, strict=True)]


@pytest.mark.parametrize(
    ("memory", "descriptors", "is_flat"),
    [
        ([50, 60, 60, 60, 60, 60, 60, 61], [20] * 8, True),
        ([20, 40, 60, 60, 60, 60, 60, 60], [5, 20, 20, 20, 20, 20, 20, 20], True),
        ([50, 60, 60, 60, 61, 62, 64, 66], [20] * 8, False),
        ([60] * 8, [20, 20, 20, 20, 20, 20, 20, 21], False),
        ([60] * 8, [40, 20, 20, 20, 20, 19, 20, 20], True),
    ],
)
def test_growth_is_told(memory: list[float], descriptors: list[int], is_flat: bool) -> None:
    assert verdict(samples(memory, descriptors)).startswith("Flat" if is_flat else "NOT FLAT")


@pytest.mark.slow(11)
def test_a_short_soak_writes_its_page(tmp_path: Path) -> None:
    page = tmp_path / "SOAK.md"
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "4", "--results", str(page)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=plain_environment())
    if shutil.which("wrk") is None:
        assert result.returncode == 1
        assert "apt-get install wrk" in result.stderr
        return
    text = page.read_text()
    assert result.returncode == (0 if "**Flat" in text else 1), result.stderr  # four seconds are no soak
    assert text.count("MiB |") == 2 * 4
    assert "Every answer was a 200." in text
