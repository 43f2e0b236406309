"""Where alarms may be sent to, and how they are signed. What is wrong is told without the URL: it may hold a token."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

LEAST_SECRET = 16
"""Characters of the secret that messages are signed with, at least."""
_HERE = ("localhost", "127.0.0.1", "::1")


def webhook_parts(text: str) -> SplitResult:
    """Return the parts of a webhook's URL; raises ValueError for one that alarms cannot be sent to, or not safely."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("the URL holds a character that none may have: write it as %XX")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("this is no URL: write it as https://HOST/PATH, or https://HOST:PORT/PATH") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("user and password in the URL are not sent: use a webhook whose path or query has a token")
    if not parts.hostname:
        raise ValueError("the URL names no host: write it as https://HOST/PATH")
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _HERE):
        raise ValueError("the URL is not https; http goes to this machine alone")
    return parts


def check_url(url: SecretStr) -> SecretStr:
    """Return the setting as it is, none included; raises as `webhook_parts`."""
    if url.get_secret_value():
        webhook_parts(url.get_secret_value())
    return url


def check_secret(secret: SecretStr) -> SecretStr:
    """Return the setting as it is, none included; raises ValueError for one that is too short."""
    text = secret.get_secret_value()
    if text and len(text.strip()) < LEAST_SECRET:
        raise ValueError(
            f"it is shorter than {LEAST_SECRET} characters, so a receiver could not tell who sent a message: make one "
            "with `openssl rand -hex 32`"
        )
    return secret
