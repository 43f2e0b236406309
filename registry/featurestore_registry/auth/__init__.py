"""Tokens, roles and the ASGI middleware that both servers stand behind. Pure ASGI: no web framework here."""

from featurestore_registry.auth.middleware import AuthMiddleware
from featurestore_registry.auth.sessions import Person, Session, end_sessions, sessions
from featurestore_registry.auth.tokens import (
    MIN_STATIC_TOKEN_LENGTH,
    Role,
    Token,
    TokenVerifier,
    create_token,
    given_token,
    known_tokens,
    revoke_token,
    tokens,
)

__all__ = [
    "MIN_STATIC_TOKEN_LENGTH",
    "AuthMiddleware",
    "Person",
    "Role",
    "Session",
    "Token",
    "TokenVerifier",
    "create_token",
    "end_sessions",
    "given_token",
    "known_tokens",
    "revoke_token",
    "sessions",
    "tokens",
]
