"""The options that say which features a command reads."""

from __future__ import annotations

import click

features_option = click.option(
    "--features",
    multiple=True,
    help="Comma-separated view:feature references, `view:*` for all of a view; may be repeated.",
)


def wanted_features(features: tuple[str, ...], service: str | None) -> str | list[str]:
    """Return the service or the references; raises UsageError unless exactly one of the two was given."""
    if bool(features) == (service is not None):
        raise click.UsageError("Give either --features or --service.")
    return service if service is not None else [name.strip() for text in features for name in text.split(",")]
