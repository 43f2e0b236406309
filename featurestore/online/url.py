"""A store's URL without its credentials, which are kept where nothing prints them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_plus

SECRET_OPTIONS = ("username", "password", "ssl_password")
"""The parts of a URL's query that say who connects."""

_REMOTE = re.compile(r"(?!sqlite:|lmdb:|file:)([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = r"(?:\[[^\[\]/?#@\s]+\]|[^/?#@:,\s\[\]]+)(?::[0-9]+)?"
HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
# A proper URL: an @ after its hosts is in the value of an option that may hold one.
_PROPER = re.compile(
    rf"(?:([^/?#]*)@)?({HOSTS.pattern}(?:/[0-9]*/?)?"
    r"(?:\?(?:(?:db=[0-9]*|(?:username|password|client_name|ssl_[a-z_]+)=[^&#]*)(?:&|$))*)?)"
)


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Who connects, as connection options. Its repr shows nothing."""

    options: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Credentials(…)" if self.options else "Credentials()"


class StoreUrl(str):
    """The text of a URL that may be shown, and separately the credentials of the original URL.

    Everything before the last @ is user and password, with any characters, unless the URL is a proper one with an @ in
    the value of an option. If no host is left, nothing is shown. Folders and files have no credentials.
    """

    credentials: Credentials

    def __new__(cls, text: str) -> StoreUrl:
        """Take the credentials out of a text; the rest stays unchanged."""
        if isinstance(text, StoreUrl):
            return text
        shown, credentials = _split(text)
        made = super().__new__(cls, shown)
        made.credentials = credentials
        return made


def _split(text: str) -> tuple[str, Credentials]:
    remote = _REMOTE.fullmatch(text)
    if remote is None:
        return text, Credentials()
    scheme, rest = remote.groups()
    proper = _PROPER.fullmatch(rest)
    user_info, place = (proper[1] or "", proper[2]) if proper else rest.rpartition("@")[::2]
    if not HOSTS.fullmatch(re.split("[/?#]", place)[0]):
        place = ""  # a text without a host may be a password
    place, mark, query = place.partition("?")
    kept, options = [], dict[str, str]()
    for part in query.split("&"):
        name, _, value = map(unquote_plus, part.partition("="))
        if name in SECRET_OPTIONS and value:
            options.setdefault(name, value)
        elif name not in SECRET_OPTIONS:
            kept.append(part)
    username, _, password = map(unquote, user_info.partition(":"))
    options |= {name: value for name, value in (("username", username), ("password", password)) if value}
    shown = f"{scheme.lower()}://{place}{mark}{'&'.join(kept)}"
    return shown, Credentials(options)
