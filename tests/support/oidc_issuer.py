"""An identity provider: discovery, authorize, token and keys over real HTTP, which can misbehave on purpose."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

Answer = tuple[int, dict[str, str], bytes]


class OidcIssuer:
    """Logs everybody in as ``person`` without a question; ``spoil`` may change what is answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys = {"one": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.behave()

    def behave(self) -> None:
        """Forget what was changed on purpose."""
        self.person: dict[str, Any] = {"sub": "ada", "groups": ["everyone"], "email": "ada@x.example"}
        self.secrets: dict[str, str] = {}
        """By client id; a client that is not here is a public one."""
        self.redirect_paths = ["/login/callback", "/127.0.0.1/callback"]
        self.metadata: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.codes: dict[str, dict[str, str]] = {}
        self.spoil: Callable[[str, Answer], Answer | None] = lambda path, answer: answer
        """Receives a path and its answer; None closes the connection."""
        self.made: Callable[[dict[str, Any]], dict[str, Any] | str] = lambda claims: claims
        """Receives the claims of an ID token, and returns others, or the token itself."""

    def answer(self, method: str, path: str, query: dict[str, str], header: str) -> Answer:
        self.asked.append((path, query))
        if path == "/.well-known/openid-configuration":
            return self._json(
                {
                    "issuer": self.url,
                    "jwks_uri": f"{self.url}/jwks",
                    "authorization_endpoint": f"{self.url}/authorize?tenant=7",
                    "token_endpoint": f"{self.url}/token",
                    "authorization_response_iss_parameter_supported": True,
                    **self.metadata,
                }
            )
        if path == "/jwks":
            algorithm: Any = jwt.algorithms.RSAAlgorithm
            made = [(name, json.loads(algorithm.to_jwk(key.public_key()))) for name, key in self.keys.items()]
            return self._json({"keys": [{**key, "kid": name, "alg": "RS256", "use": "sig"} for name, key in made]})
        if path == "/authorize":
            assert (query["tenant"], query["response_type"], query["code_challenge_method"]) == ("7", "code", "S256")
            assert "openid" in query["scope"].split()
            if urlsplit(query["redirect_uri"]).path not in self.redirect_paths:
                return 400, {}, b"This redirect address is not registered."
            code = secrets.token_urlsafe(16)
            self.codes[code] = query
            told = {"code": code, "state": query["state"], "iss": self.url}
            return 302, {"location": f"{query['redirect_uri']}?{urlencode(told)}"}, b""
        if (method, path) == ("POST", "/token"):
            return self._token(query, header)
        return 404, {}, b""

    def _token(self, form: dict[str, str], header: str) -> Answer:
        client, secret = form.get("client_id", ""), form.get("client_secret", "")
        if header.startswith("Basic "):
            client, secret = map(unquote, base64.b64decode(header[6:]).decode().split(":"))
        asked = self.codes.pop(form.get("code", ""), None)
        challenge = (
            base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        )
        if self.secrets.get(client, "") != secret:
            return self._json({"error": "invalid_client"}, 401)
        if asked is None or (asked["client_id"], asked["redirect_uri"], asked["code_challenge"]) != (
            client,
            form["redirect_uri"],
            challenge,
        ):
            return self._json({"error": "invalid_grant", "error_description": "<b>no such code</b>"}, 400)
        claims = {"aud": client, "nonce": asked["nonce"], **self.person}
        return self._json({"access_token": "opaque", "token_type": "Bearer", "id_token": self.token(**claims)})

    def token(self, **claims: Any) -> str:
        now = time.time()
        made = self.made({"iss": self.url, "aud": "registry", "iat": now, "exp": now + 300, **self.person, **claims})
        if isinstance(made, str):
            return made
        name, key = next(iter(self.keys.items()))
        return jwt.encode(made, key, "RS256", headers={"kid": name})

    def _json(self, document: Any, status: int = 200) -> Answer:
        return status, {"content-type": "application/json"}, json.dumps(document).encode()


@contextmanager
def oidc_issuer() -> Iterator[OidcIssuer]:
    """Serve an identity provider on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parsed = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            query = {name: values[0] for name, values in parse_qs(f"{parsed.query}&{body}").items()}
            answer = issuer.answer(self.command, parsed.path, query, self.headers.get("authorization", ""))
            spoilt = issuer.spoil(parsed.path, answer)
            if spoilt is None:
                self.close_connection = True
                return
            self.send_response(spoilt[0])
            for name, value in {**spoilt[1], "content-length": str(len(spoilt[2]))}.items():
                self.send_header(name, value)
            self.end_headers()
            slowly_s = float(spoilt[1].get("x-slowly", 0))
            for piece in [spoilt[2]] if not slowly_s else [bytes([each]) for each in spoilt[2]]:
                time.sleep(slowly_s)
                with contextlib.suppress(OSError):
                    self.wfile.write(piece)

        do_GET = do_POST = _serve

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        issuer = OidcIssuer(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield issuer
        finally:
            server.shutdown()
