"""HTTP by hand over a socket, for what a well-behaved client would not do."""

from __future__ import annotations

import json
import socket

import httpx

BODY = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}
REQUEST = json.dumps(BODY).encode()


def connect(base_url: httpx.URL | str) -> socket.socket:
    """Return a connection to a server."""
    url = httpx.URL(base_url)
    return socket.create_connection((url.host, url.port), timeout=10)


def head(length: int, *more: str, path: str = "/v1/online-features") -> bytes:
    """Return the header of a read whose body has ``length`` bytes, with ``more`` lines."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *more]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the connection was closed within an answer"
    return data


def read_one(connection: socket.socket) -> bytes:
    """Return one answer, whole, of a connection that stays open."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _received(connection)
    lines, _, body = answer.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in lines.split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < length:
        body += _received(connection)
    return lines + b"\r\n\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    """Return what arrives until the other side closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
