"""Where things are: the API's prefix, and which URLs nobody else can read along."""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from urllib.parse import urlsplit

PREFIX = "/api/v1"


def is_private(url: str) -> bool:
    """Tell whether nobody on the way to a URL can read along: by TLS, or because it leads to this machine."""
    parsed = urlsplit(url)
    return parsed.scheme == "https" or (parsed.scheme == "http" and _is_loopback(parsed.hostname or ""))


def tls_of(url: str) -> ssl.SSLContext | bool:
    """Return what httpx is to ``verify`` at a URL: for plain HTTP no authorities, as reading them takes some 20 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.lower().startswith("http:") else True


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
