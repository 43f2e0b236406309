"""A signed message about alarms, to the webhook of the settings: for each alarm one that was taken."""

from __future__ import annotations

import hashlib
import hmac
import threading
from contextlib import suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR
from typing import Any

from featurestore_registry.findings import MonitorDocument
from featurestore_registry.records import canonical_json

from featurestore.errors import MaterializationError, SettingsError
from featurestore.ledger.monitors import change_alarms
from featurestore.project.settings import MonitorSettings
from featurestore.project.webhook import webhook_parts
from featurestore.quality.report import MonitorResult
from featurestore.types.times import Clock
from featurestore.workspace import Workspace

ANSWER_SECONDS = 10.0
"""So long a receiver may take for all of its answer."""
CLAIM_US = 60_000_000
"""Who began to send a message so long ago died: another run sends it."""
SIGNATURE = "X-Featurestore-Signature"


def send(workspace: Workspace, result: MonitorResult) -> tuple[str, ...]:
    """Send alarms that nobody was told of to the settings' webhook, signed; returns their ids.

    They are claimed first, so that of two runs at once only one sends, and given back where the message is not taken.
    Raises SettingsError where there is no webhook, and MaterializationError where it does not take the message: the
    next run tries again.
    """
    settings, name = checked(workspace.settings.monitor), result.document.monitor
    own = set(result.alarms)

    def claimed(document: MonitorDocument, now_us: int) -> tuple[MonitorDocument, tuple[str, ...]]:
        ids = tuple(
            alarm.id
            for alarm in document.alarms
            if alarm.id in own and not alarm.sent_us and abs(now_us - alarm.sending_us) >= CLAIM_US
        )
        return marked(document, ids, sending_us=now_us), ids

    ids = change_alarms(workspace, name, claimed) if result.is_kept else ()
    if not ids:
        return ()
    try:
        post(settings, {"event": "monitor", "new": list(ids), "monitor": result.to_dict()}, workspace.clock)
    except BaseException:
        change_alarms(workspace, name, lambda document, _: (marked(document, ids, sending_us=0), ids))
        raise
    return change_alarms(workspace, name, lambda document, now_us: (marked(document, ids, sent_us=now_us), ids))


def marked(document: MonitorDocument, ids: tuple[str, ...], **marks: Any) -> MonitorDocument:
    """Return a finding with marks at some of its alarms."""
    alarms = (replace(alarm, **marks) if alarm.id in ids else alarm for alarm in document.alarms)
    return replace(document, alarms=tuple(alarms))


def checked(settings: MonitorSettings) -> MonitorSettings:
    """Return the settings of a webhook; raises SettingsError where it has no URL or no secret."""
    for name, what in (("webhook_url", "webhook that alarms can be sent to"), ("webhook_secret", "webhook_secret")):
        if not getattr(settings, name).get_secret_value():
            raise SettingsError(
                f"There is no {what}.",
                hint="Set `monitor: {webhook_url: ${NAME}, webhook_secret: ${NAME}}` in feature_store.yaml.",
                key=f"monitor.{name}",
            )
    return settings


def post(settings: MonitorSettings, message: dict[str, Any], clock: Clock) -> None:
    """POST a message to the settings' webhook, with a timestamp. Raises MaterializationError."""
    at_s = clock() // 1_000_000
    body = canonical_json({"timestamp": at_s, **message}).encode()
    key = settings.webhook_secret.get_secret_value().encode()
    signed = hmac.new(key, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    url = webhook_parts(settings.webhook_url.get_secret_value())
    request = _Request(url.scheme, url.hostname or "", url.port, body, f"t={at_s},v1={signed}")
    request.target = f"{url.path or '/'}{f'?{url.query}' if url.query else ''}"
    request.start()
    request.join(ANSWER_SECONDS)
    told = request.told if not request.is_alive() else "timed out"
    if told:
        request.give_up()
        raise MaterializationError(
            f"The webhook at {url.hostname} did not take the message: {told}.",
            hint="Alarms that were not told are sent with the next `fs monitor --webhook`.",
        )


class _Request(threading.Thread):
    """A request that can be given up: neither a slow name server nor a byte now and then holds who waits for it.

    http.client follows no redirect and asks no proxy, so the message goes to the address in the settings alone.
    """

    target = "/"

    def __init__(self, scheme: str, host: str, port: int | None, body: bytes, signature: str) -> None:
        super().__init__(daemon=True)
        connection = HTTPSConnection if scheme == "https" else HTTPConnection
        self._connection = connection(host, port, timeout=ANSWER_SECONDS)
        self._body, self._signature, self._is_given_up = body, signature, False
        self.told = "it broke off"
        """Why the message was not taken; empty where it was."""

    def run(self) -> None:
        """Send the message, and read how it was answered."""
        headers = {"Content-Type": "application/json", "User-Agent": "featurestore", SIGNATURE: self._signature}
        try:
            self._connection.connect()
            if not self._is_given_up:
                self._connection.request("POST", self.target, self._body, headers)
                status = self._connection.getresponse().status
                self.told = "" if 200 <= status < 300 else str(status)
        except (OSError, HTTPException, ValueError) as error:
            self.told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        finally:
            self._connection.close()

    def give_up(self) -> None:
        """End it, wherever it is."""
        self._is_given_up = True
        with suppress(OSError, AttributeError):
            self._connection.sock.shutdown(SHUT_RDWR)
