"""What follows an alarm: a command of the person who runs the monitor, and a signed message. Each once per alarm."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from featurestore_registry.documents import MonitorAlarm, MonitorDocument
from featurestore_registry.records import canonical_json

from featurestore.errors import FeatureStoreError, LedgerConflictError, MaterializationError, SettingsError
from featurestore.ledger.monitors import newest_finding, write_finding
from featurestore.project.settings import ALARM_VARIABLES, MonitorSettings
from featurestore.quality.report import MonitorResult
from featurestore.types.times import MICROSECOND, Clock
from featurestore.workspace import Workspace

ANSWER_SECONDS = 10.0
"""So long a receiver may take."""
SIGNATURE = "X-Featurestore-Signature"
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Acted:
    """How a command ended."""

    monitor: str
    alarms: tuple[str, ...]
    exit_code: int | None
    """None where it was ended because it took too long."""


def act(
    workspace: Workspace, result: MonitorResult, command: str, *, cooldown: timedelta, timeout: timedelta
) -> Acted | None:
    """Run a shell command for alarms that none has run for; None where there are none, or one ran a moment ago.

    The alarms are marked before it begins, so that nobody runs it twice, also where it dies. Nothing is put into the
    command: ``FS_ALARM_MONITOR``, ``FS_ALARM_STATE``, ``FS_ALARM_IDS`` (with spaces between) and ``FS_ALARM_REPORT`` (a
    JSON file, there while it runs) are in its environment. It writes to standard error.
    """
    taken = _taken(workspace, result.document.monitor, "acted_us", cooldown=cooldown)
    if not taken:
        return None
    descriptor, report = tempfile.mkstemp(prefix="featurestore-monitor-", suffix=".json")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(result.to_dict(), file)
        told = dict(zip(ALARM_VARIABLES, (result.document.monitor, result.state, " ".join(taken), report), strict=True))
        return Acted(result.document.monitor, taken, _run(command, told, timeout))
    finally:
        Path(report).unlink(missing_ok=True)


def _run(command: str, told: dict[str, str], timeout: timedelta) -> int | None:
    """Return the exit code of a command, None where it took too long: then all that it started is ended."""
    process = subprocess.Popen(  # noqa: S602 - the person's own command, in the person's own shell
        command, shell=True, env={**os.environ, **told}, stdout=sys.stderr.fileno(), start_new_session=True
    )
    try:
        return process.wait(timeout.total_seconds())
    except BaseException as error:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def send(workspace: Workspace, result: MonitorResult) -> tuple[str, ...]:
    """Send alarms that nobody was told of to the settings' webhook, signed; returns their ids.

    Raises SettingsError where there is no webhook, and MaterializationError where it does not take the message: the
    next run tries again.
    """
    settings = checked(workspace.settings.monitor)
    waiting = tuple(alarm.id for alarm in result.document.alarms if not alarm.sent_us)
    if not waiting:
        return ()
    post(settings, result.to_dict(), workspace.clock)
    return _taken(workspace, result.document.monitor, "sent_us")


def post(settings: MonitorSettings, document: dict[str, Any], clock: Clock) -> None:
    """POST a document to the settings' webhook. Raises MaterializationError."""
    at_s = clock() // 1_000_000
    body = canonical_json({"timestamp": at_s, "event": "monitor", "monitor": document}).encode()
    key = settings.webhook_secret.get_secret_value().encode()
    signed = hmac.new(key, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    url = settings.webhook_url.get_secret_value()
    headers = {"Content-Type": "application/json", "User-Agent": "featurestore", SIGNATURE: f"t={at_s},v1={signed}"}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - `checked` looked at it
    try:
        with _OPENER.open(request, timeout=ANSWER_SECONDS) as answer:
            status = answer.status
    except (OSError, HTTPException, ValueError) as error:
        raise _not_taken(url, getattr(error, "code", None) or getattr(error, "reason", None) or error) from None
    if not 200 <= status < 300:
        raise _not_taken(url, status)


def checked(settings: MonitorSettings) -> MonitorSettings:
    """Return the settings of a webhook; raises SettingsError where it has no URL or none that is safe, or no secret."""
    parts = urlsplit(settings.webhook_url.get_secret_value())
    is_here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_here):
        raise SettingsError(
            "There is no webhook that alarms can be sent to." if not parts.scheme else "The webhook is not https.",
            hint="Set `monitor: {webhook_url: ${NAME}, webhook_secret: ${NAME}}` in feature_store.yaml, an https URL.",
            key="monitor.webhook_url",
        )
    if len(settings.webhook_secret.get_secret_value()) < 16:
        raise SettingsError(
            "The webhook has no secret of 16 characters or more: a receiver could not tell who sent a message.",
            hint="Set monitor.webhook_secret, or FS_MONITOR__WEBHOOK_SECRET.",
            key="monitor.webhook_secret",
        )
    return settings


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: the message is for the address in the settings."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _not_taken(url: str, why: object) -> FeatureStoreError:
    host = urlsplit(url).hostname
    return MaterializationError(
        f"The webhook at {host} did not take the message: {why}.",
        hint="Alarms that were not told are sent with the next `fs monitor --webhook`.",
    )


def _taken(workspace: Workspace, name: str, mark: str, *, cooldown: timedelta = timedelta(0)) -> tuple[str, ...]:
    """Mark the open alarms that lack a mark, and return their ids; none where others marked them first."""
    for _ in range(_TRIES):
        document, version = newest_finding(workspace.ledger, workspace.project, name)
        now_us = workspace.clock()
        if document is None or (mark == "acted_us" and now_us < document.acted_us + cooldown // MICROSECOND):
            return ()
        waiting = tuple(alarm.id for alarm in document.alarms if not getattr(alarm, mark) and document.state == "alarm")
        if not waiting:
            return ()
        alarms = tuple(_marked(alarm, mark, now_us) if alarm.id in waiting else alarm for alarm in document.alarms)
        made: MonitorDocument = replace(document, alarms=alarms)
        if mark == "acted_us":
            made = replace(made, acted_us=now_us)
        with suppress(LedgerConflictError):
            write_finding(workspace.ledger, workspace.project, made, if_version=version)
            return waiting
    return ()


def _marked(alarm: MonitorAlarm, mark: str, now_us: int) -> MonitorAlarm:
    return replace(alarm, acted_us=now_us) if mark == "acted_us" else replace(alarm, sent_us=now_us)


def told(acted: Acted) -> str:
    """Return how a command ended, in words."""
    end = "was ended: it took too long" if acted.exit_code is None else f"ended with {acted.exit_code}"
    return f"{acted.monitor}: the command for {', '.join(acted.alarms)} {end}."
