"""Who looks at a page, and what they may see."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore_registry.auth import Person, Role, Token
from featurestore_registry.errors import AuthError


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody with a token; or, without one, whoever sits at this machine: the registry itself then says no."""

    token: Token | None = None

    def can(self, role: Role, project: str) -> bool:
        """Tell whether they have a role in a project."""
        if self.token is None:
            return True
        try:
            self.token.require(role, project)
        except AuthError:
            return False
        return True

    def require(self, role: Role, project: str) -> None:
        """Raise AuthError unless they have a role in a project."""
        if self.token is not None:
            self.token.require(role, project)

    def sees(self, project: str) -> bool:
        """Tell whether a project exists for them."""
        return self.can(Role.VIEWER, project)

    @property
    def name(self) -> str:
        """What to call them; empty at this machine."""
        return "" if self.token is None else self.token.name or self.token.id

    @property
    def roles(self) -> str:
        """Their roles, as settings say them; empty at this machine."""
        if isinstance(self.token, Person):
            return ", ".join(role for _, role in self.token.roles)
        return "" if self.token is None else str(self.token.role)

    @property
    def is_person(self) -> bool:
        """Whether they logged in, and can log out."""
        return isinstance(self.token, Person) and bool(self.token.session)
