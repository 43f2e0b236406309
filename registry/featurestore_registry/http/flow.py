"""A login by OpenID Connect's authorization code flow with PKCE: for the server and for `fs login` alike.

RFC 6749 and 7636 (by oauthlib), RFC 9207 (the answer names its issuer), OpenID Connect Core 1.0, section 3.1.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote

import httpx
import jwt
from oauthlib.oauth2 import MismatchingStateError, OAuth2Error, WebApplicationClient

from featurestore_registry.http.oidc import IdentityProvider, LoginError, ask, away, printable


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """What a login remembers of its authorization request until the provider answers."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class CodeFlow:
    """Logins of one client at the provider."""

    provider: IdentityProvider
    client_id: str
    redirect_uri: str
    secret: str = ""

    def begin(self, nonce: str = "") -> tuple[str, AuthorizationRequest]:
        """Return the address at which the provider asks who somebody is, and what to remember; raises LoginError."""
        if not self.provider.endpoints:
            self.provider.refresh()
        endpoint = self._endpoint("authorization_endpoint")
        client = WebApplicationClient(self.client_id)
        pending = AuthorizationRequest(
            secrets.token_urlsafe(32), nonce or secrets.token_urlsafe(32), client.create_code_verifier(64)
        )
        query = client.prepare_request_uri(
            "https://x",  # oauthlib takes no endpoint without TLS, though this machine may have one: see the provider
            redirect_uri=self.redirect_uri,
            scope=" ".join(self.provider.issuer.scopes),
            state=pending.state,
            nonce=pending.nonce,
            code_challenge=client.create_code_challenge(pending.verifier, "S256"),
            code_challenge_method="S256",
        ).partition("?")[2]
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}", pending

    def finish(self, query: str, pending: AuthorizationRequest) -> tuple[str, Mapping[str, Any]]:
        """Return the ID token and its checked claims for what the provider sent by the browser; raises LoginError."""
        try:
            token = self._id_token(self._code(query, pending), pending)
            return token, self.provider.verify_login(token, self.client_id, pending.nonce)
        except (jwt.PyJWTError, ValueError) as error:
            raise LoginError("The identity provider's token is not for this login.", why=error) from None
        except (LookupError, TypeError) as error:
            raise away(error) from None

    def _code(self, query: str, pending: AuthorizationRequest) -> str:
        client, issuer = WebApplicationClient(self.client_id), self.provider.issuer.url
        told = parse_qs(query, keep_blank_values=True)
        if any(len(values) > 1 for values in told.values()):
            raise LoginError("The answer says something twice.", why="a parameter is there twice")
        try:
            # Its own check of the state would let an empty one pass.
            if told.get("state") != [pending.state or None]:
                raise MismatchingStateError
            may_be_silent = not self.provider.endpoints.get("authorization_response_iss_parameter_supported")
            if told.get("iss", [issuer] if may_be_silent else []) != [issuer]:
                raise LoginError("The answer is another identity provider's.", why=f"iss is {told.get('iss')}")
            return str(client.parse_request_uri_response(f"https://callback/?{query}", state=pending.state)["code"])
        except MismatchingStateError:
            raise LoginError("This answer is not for the login that this browser began.", why="wrong state") from None
        except OAuth2Error as error:
            status = 403 if error.error == "access_denied" else 400
            why = f"{error.error}: {error.description}"
            raise LoginError(f"The identity provider refused: {printable(why)}", status=status, why=why) from None

    def _id_token(self, code: str, pending: AuthorizationRequest) -> str:
        client = WebApplicationClient(self.client_id)
        by_header = bool(self.secret) and "client_secret_basic" in self.provider.endpoints.get(
            "token_endpoint_auth_methods_supported", ["client_secret_basic"]
        )
        body = client.prepare_request_body(
            code=code,
            redirect_uri=self.redirect_uri,
            code_verifier=pending.verifier,
            include_client_id=not by_header,
            client_secret=self.secret if self.secret and not by_header else None,
        )
        # RFC 6749, section 2.3.1: both are encoded as in a form.
        auth = (quote(self.client_id, safe=""), quote(self.secret, safe="")) if by_header else None
        answer = ask(self._endpoint("token_endpoint"), body, auth)
        if answer.status_code >= 500:
            raise away(f"the token endpoint answers {answer.status_code}")
        try:
            found = client.parse_request_body_response(answer.text) if isinstance(answer.json(), dict) else {}
        except OAuth2Error as error:
            why = f"token endpoint: {error.error}: {error.description}"
            raise LoginError("The identity provider did not take the code.", why=why) from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise away(f"the token endpoint's answer: {type(error).__name__}") from None
        token = found.get("id_token")
        if not isinstance(token, str):
            raise LoginError("The identity provider gave no ID token.", status=502, why="no id_token")
        return token

    def _endpoint(self, name: str) -> str:
        if name not in self.provider.endpoints:
            raise away(f"no {name} is known of {self.provider.issuer.url}")
        return str(self.provider.endpoints[name])


def bound_nonce(verifier: str, url: str) -> str:
    """Return a nonce that binds an ID token to the registry at a URL, and to who knows the verifier.

    Without it a registry that somebody is lured to could present at another one what it got.
    """
    parsed = httpx.URL(url)
    return hashlib.sha256(f"{verifier} {parsed.scheme}://{parsed.netloc.decode()}".encode()).hexdigest()


def redirect_path(url: str) -> str:
    """Return where, on loopback, the provider sends somebody who logs in to the registry at a URL.

    Each registry has its own (RFC 9700, section 4.4.2.2). A registry that somebody is lured to can offer a provider of
    its own, whose pages lead on to the company's; but that one knows the company's registry alone, so that its code
    never reaches a login elsewhere, which would hand it over.
    """
    return f"/{httpx.URL(url).raw_host.decode()}/callback"
