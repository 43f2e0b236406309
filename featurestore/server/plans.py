"""Compiled plans of one revision, kept by what was asked for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from featurestore.definitions import FeatureService
from featurestore.errors import FeatureStoreError, InputError
from featurestore.metadata.snapshot import Snapshot
from featurestore.retrieval.features import Reference, resolve
from featurestore.retrieval.online_plan import OnlinePlan
from featurestore.server.errors import RequestError

MOST_PLANS = 256
MOST_FEATURES = 500


class Asked(NamedTuple):
    """The shape of a request: features, or the name of a service."""

    features: tuple[str, ...]
    service: str | None
    full_feature_names: bool


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """A compiled plan, and what of its answers is always the same."""

    plan: OnlinePlan
    names: msgspec.Raw
    """JSON list of the output names."""
    present: msgspec.Raw
    """JSON list that says PRESENT of each output."""
    views: tuple[str, ...]
    """Name of the view of each read."""

    @classmethod
    def of(cls, plan: OnlinePlan) -> ServingPlan:
        """Encode what can be encoded beforehand."""
        return cls(
            plan,
            msgspec.Raw(msgspec.json.encode(plan.names)),
            msgspec.Raw(msgspec.json.encode(["PRESENT"] * len(plan.names))),
            tuple(read.view.name for read in plan.request.reads),
        )


class Plans:
    """The least recently used plan goes first when there are too many. For one event loop's thread."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._plans: dict[Asked, ServingPlan] = {}

    def plan(self, asked: Asked) -> ServingPlan:
        """Return the plan of a shape.

        Raises RequestError (413) for too many features, NotFoundError, CodeMismatchError, OutputNameClashError
        and InputError as `resolve` and `OnlinePlan.compile` do.
        """
        found = self._plans.pop(asked, None)
        if found is None:
            found = self._compile(asked)
            while len(self._plans) >= MOST_PLANS:
                del self._plans[next(iter(self._plans))]
        self._plans[asked] = found
        return found

    def prepare(self, older: Plans) -> None:
        """Compile what is in use, so that the first requests after a swap need not wait for it."""
        for asked in tuple(older._plans):
            with suppress(FeatureStoreError):  # it is gone in this revision: the request will say so
                self.plan(asked)

    def _compile(self, asked: Asked) -> ServingPlan:
        _check_count(len(asked.features))
        features: Reference | list[Reference]
        if asked.service is not None:
            features = self.snapshot.get(FeatureService, asked.service)
        else:
            features = [_checked(feature) for feature in asked.features]
        request = resolve(self.snapshot, features, full_feature_names=asked.full_feature_names)
        _check_count(len(request.outputs))
        return ServingPlan.of(OnlinePlan.compile(self.snapshot, request, form="json"))


def _checked(feature: str) -> str:
    if ":" not in feature:
        raise InputError(f"{feature!r} is no feature reference.", hint="Features are written as view:feature.")
    return feature


def _check_count(features: int) -> None:
    if features > MOST_FEATURES:
        raise RequestError(
            413,
            "too_many_features",
            f"{features} features are more than {MOST_FEATURES}.",
            hint="Ask in several requests.",
            features=features,
            max_features=MOST_FEATURES,
        )
