"""The command ``fs`` in the test's own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featurestore.cli.main import main


class CommandLine:
    """Runs ``fs`` on one feature repo, and keeps what it said."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        """Return all that a command printed, after checking its exit code."""
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--repo", str(self.root)])
        self.out, self.err = self._capsys.readouterr()
        assert caught.value.code == expect, self.out + self.err
        assert "Traceback (most recent call last)" not in self.out + self.err
        return self.out + self.err

    def json(self, *arguments: str, expect: int = 0) -> Any:
        self(*arguments, "--json", expect=expect)
        return json.loads(self.out)
