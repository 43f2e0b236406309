"""Pages that stand alone: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

from typing import Any

from featurestore.tables import visible


def rendered(template: str, **values: Any) -> str:
    """Return a page of ``quality/templates``, which escapes everything; ``seen`` makes visible what a text hides."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("featurestore.quality", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["seen"] = visible
    return environment.get_template(template).render(**values)
