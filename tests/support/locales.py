"""A locale in which texts do not sort like bytes, also on a machine that has none installed."""

from __future__ import annotations

import locale
import subprocess
from pathlib import Path

NAME = "en_US.UTF-8"


def locale_environment(folder: Path) -> dict[str, str]:
    """Return the environment for collating by en_US.UTF-8, which is compiled into ``folder`` where it is missing."""
    if _is_installed():
        return {"LC_ALL": NAME, "LANG": NAME}
    command = ["localedef", "--no-archive", "--inputfile=en_US", "--charmap=UTF-8", str(folder / NAME)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"There is no {NAME} and it cannot be made: install the package `locales`.") from error
    return {"LC_ALL": NAME, "LANG": NAME, "LOCPATH": str(folder)}


def _is_installed() -> bool:
    before = locale.setlocale(locale.LC_COLLATE)
    try:
        locale.setlocale(locale.LC_COLLATE, NAME)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_COLLATE, before)
    return True
