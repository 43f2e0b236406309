"""What a page shows, run: its console blocks line by line, its Python blocks, and the output that stands below them.

A console block holds commands (``$ ...``), each followed by what it prints. A Python block may be followed by a text
block with what it prints. `UPDATE_DOCS=1` writes the page anew with what was printed, for reading before it is
committed. The clock of the commands is set, and goes at a tenth of its pace, so that a page shows the same whenever and
however slowly it is run; a page names the default port and Redis's, and the commands get those that are free.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from string import Template

import httpx

from featurestore.types.times import to_instant
from support.forked_fs import Started, forked_fs
from support.processes import plain_environment

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SERVED = {"fs serve": "http://127.0.0.1:6566", "fs registry serve": "http://127.0.0.1:6570"}
"""Where a page says that servers are: their default ports may be in use where the tests run."""

NOW = "2026-11-26T09:20:00Z"
"""When the pages are run, by the clock of their commands: it goes on from here, and no page takes forty minutes."""


def today() -> str:
    """Return the same hour of today, for what Redis expires by the machine's own clock."""
    return f"{datetime.now(UTC):%Y-%m-%d}{NOW[10:]}"


SET_CLOCK = """\
import time
_real, _begun_ns, _now_ns = time.time_ns, {begun_ns}, {now_ns}
time.time_ns = lambda: _now_ns + (_real() - _begun_ns) // 10
"""

PLAIN_FS = re.compile(r"""((?:FS_\w+=[\w./:]+ )*)fs ([\w ./:,=@'"+‹›-]+)(; echo "exit code \$\?")?""")
"""A command that needs no shell: variables of its own, arguments, and whether its exit code is shown."""

BLOCK_END = "\0\n"
PYTHON_SESSION = """\
import json, sys
names = {}
sys.path.insert(0, "")
sys.stdout.reconfigure(line_buffering=True)
for line in sys.stdin:
    exec(json.loads(line), names)
    print("\\0")
"""

VOLATILE = [
    (re.compile(r"\d{4}-\d\d-\d\d[ T]09:[2-5]\d:\d\d[.\d]*Z?"), "<now>"),
    (re.compile(r"\b\d+\.\d s\b"), "<seconds>"),
    (re.compile(r"\b[0-9a-f]{12}\b"), "<identity>"),
    (re.compile(r'"request_id": ?"[0-9a-f]+-\d+"'), "<request>"),
    # What the machine is: `fs doctor` and `fs log` tell of it.
    (re.compile(r"versions: Python .*"), "<versions>"),
    (re.compile(r"\b\d+\.\d GB free|file_bytes \d+|lmdb \d+\.[\d.]+"), "<machine>"),
    (re.compile(r"((?:incremental|apply) .*?\w) +\S+( +[\d+])"), r"\1 <by>\2"),
]
LOGGED = re.compile(r"^(.*: took [\d.]+ s|\d{4}-\S+ \S+ INFO .*)$\n", re.MULTILINE)
"""What long steps and the server tell on standard error: it is not what a page is about."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page or of a part of it."""
    return [Block(match[1], match[2]) for match in BLOCK.finditer(text)]


def commands(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with what is shown below it."""
    found: list[tuple[str, str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].rstrip("\n"), ""))
        else:
            command, shown = found[-1]
            found[-1] = command, shown + line
    return found


def settled(output: str) -> str:
    """Return an output without what differs from run to run."""
    for pattern, stands_for in VOLATILE:
        output = pattern.sub(stands_for, output)
    return "\n".join(" ".join(line.split()) for line in output.splitlines())


class Shell:
    """Runs the commands of a page, one after the other, in one folder."""

    def __init__(self, folder: Path, stands_for: Mapping[str, str] | None = None, *, now: str = NOW) -> None:
        """Begin in ``folder`` at ``now``. ``stands_for`` gives what a page names (an address, say) as it really is."""
        self.folder = folder
        self.environment = plain_environment()
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.environment['PATH']}"
        paths = filter(None, (str(folder / ".clock"), os.environ.get("PYTHONPATH")))
        self.environment["PYTHONPATH"] = os.pathsep.join(paths)
        (folder / ".clock").mkdir(exist_ok=True)
        self._clock = folder / ".clock" / "sitecustomize.py"
        self._begun_ns, self._now_ns = time.time_ns(), to_instant(now) * 1000
        self._move_clock(0)
        self._stands_for = dict(stands_for or {})
        self._servers: dict[str, Started] = {}
        self._began: dict[str, tuple[Path, str]] = {}
        """The folder and the port of each server that was started, for a second time."""
        self._python: Started | None = None

    def run(self, command: str) -> str:
        """Run a command and return what it printed, errors included."""
        if command.startswith("cd "):
            self.folder = self.folder / command[3:]
            return ""
        if command.startswith("export "):
            name, _, value = self._real(command[7:]).partition("=")
            self.environment[name] = self._real(self._capture(["sh", "-c", f"printf %s {value}"]))
            return ""
        if command in SERVED:
            return self._serve(command)
        if command == "systemctl stop featurestore-registry":
            return self._stop(self._servers.pop("fs registry serve"))
        if command == "systemctl start featurestore-registry":
            self._serve("fs registry serve")
            return ""
        if command.startswith("sleep "):  # for the commands that follow
            # A second more: what is waited for ends with a whole second, and by this clock nothing else takes one.
            self._move_clock((int(command[6:]) + 1) * 1_000_000_000)
            return ""
        if command.startswith("curl "):
            expanded = Template(self._real(command)).safe_substitute(self.environment)
            return self._curl(shlex.split(expanded)[1:])
        if plain := PLAIN_FS.fullmatch(self._real(command)):
            own = dict(pair.split("=", 1) for pair in plain[1].split())
            environment, before = {**self.environment, **own}, self._clock.read_text()
            code, output = forked_fs().run(shlex.split(plain[2]), self.folder, environment, before)
            return self._shown(output + (f"exit code {code}\n" if plain[3] else ""))
        return self._capture(["sh", "-c", self._real(command)])

    def run_python(self, text: str) -> str:
        """Run a Python block, in the session of those before it, and return what it printed."""
        if self._python is None:
            self._python = self._start(PYTHON_SESSION)
        self._python.stdin.write(json.dumps(self._real(text)) + "\n")
        self._python.stdin.flush()
        return self._shown("".join(itertools.takewhile(lambda line: line != BLOCK_END, self._python.stdout)))

    def _move_clock(self, step_ns: int) -> None:
        self._now_ns += step_ns
        self._clock.write_text(SET_CLOCK.format(begun_ns=self._begun_ns, now_ns=self._now_ns))

    def _real(self, text: str) -> str:
        for shown, real in self._stands_for.items():
            text = text.replace(shown, real)
        return text

    def _shown(self, text: str) -> str:
        for shown, real in self._stands_for.items():
            text = text.replace(real, shown)
        return text

    def close(self) -> None:
        """Stop what was started."""
        for server in self._servers.values():
            self._stop(server)
        if self._python is not None:
            assert self._python.wait() == 0

    @staticmethod
    def _stop(server: Started) -> str:
        server.terminate()
        assert server.wait() == 0
        return ""

    def _start(self, code: str, arguments: Sequence[str] | None = None, errors: str = "") -> Started:
        code = self._clock.read_text() + code
        return forked_fs().start(code, arguments, self.folder, self.environment, errors)

    def _capture(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return self._shown(done.stdout)

    def _serve(self, command: str) -> str:
        here = self.folder
        self.folder, port = self._began.get(command, (here, "0"))
        server = self._servers[command] = self._start("", [*command.split()[1:], "--port", port], os.devnull)
        line = server.stdout.readline()
        self._stands_for[SERVED[command]] = line.split()[-1]
        self._began[command] = self.folder, line.strip().rpartition(":")[2]
        self.folder = here
        return self._shown(line)

    def _curl(self, arguments: list[str]) -> str:
        """Send what curl would send: a machine may have no curl."""
        url, body, headers = "", None, {}
        while arguments:
            argument = arguments.pop(0)
            if argument == "-d":
                body = arguments.pop(0)
            elif argument == "-H":
                name, _, value = arguments.pop(0).partition(": ")
                headers[name] = value
            elif argument != "-s":
                url = argument
        return httpx.request("POST" if body else "GET", url, content=body, headers=headers, timeout=10).text + "\n"


def rerun(text: str, shell: Shell) -> Iterator[tuple[Block, Block]]:
    """Yield each block that shows an output as it is and as it should be."""
    python = ""
    for block in blocks(text):
        if block.language == "console":
            made = "".join(f"$ {command}\n{ended(shell.run(command))}" for command, _ in commands(block))
            yield block, replace(block, text=made)
        elif block.language == "python":
            python = shell.run_python(block.text)
        elif block.language == "text" and python:
            yield block, replace(block, text=ended(python))
            python = ""


def ended(output: str) -> str:
    """Return an output as a page shows it: no blanks at the ends of lines, and a line end after the last."""
    lines = [line.rstrip() for line in LOGGED.sub("", output).splitlines()]
    return "".join(f"{line}\n" for line in lines)


def check_page(page: Path, shell: Shell, part: Callable[[str], str]) -> list[str]:
    """Run a part of a page and return what it shows wrongly; with UPDATE_DOCS=1 the page is corrected."""
    text = page.read_text(encoding="utf-8")
    wrong, corrected = [], text
    for shown, real in rerun(part(text), shell):
        if settled(shown.text) != settled(real.text):
            wrong.append(f"the page shows\n{shown.text}\nbut running it gives\n{real.text}")
            old, new = (f"```{block.language}\n{block.text}```\n" for block in (shown, real))
            corrected = corrected.replace(old, new, 1)
    if os.environ.get("UPDATE_DOCS") and wrong:
        page.write_text(corrected, encoding="utf-8")
    return wrong
