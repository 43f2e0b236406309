"""What a server has seen lately of a service's predictions: names of one kind each, models, and sets of names.

Whoever may read features may log predictions, so all of it has a bound; what is in use keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from featurestore.errors import InputError
from featurestore.served.predictions import FORMS, Form, Prediction

MOST_NAMES, MOST_MODELS, MOST_SHAPES = 200, 200, 50
"""At most so many names of predictions, models, and sets of names are known of one service."""
KNOWN_SECONDS = 86_400.0
"""What was not used for so long makes room for others."""
T = TypeVar("T")


class _Lately(Generic[T]):
    """When things were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used_s: dict[T, float] = {}

    def has_room(self, some: Sequence[T], now_s: float) -> bool:
        """Tell whether these are known, or there is room for those that are not."""
        new = sum(each not in self._used_s for each in some)
        if not new or len(self._used_s) + new <= self._most:
            return True
        self._used_s = {each: at_s for each, at_s in self._used_s.items() if now_s - at_s < KNOWN_SECONDS}
        return len(self._used_s) + sum(each not in self._used_s for each in some) <= self._most

    def use(self, some: Iterable[T], now_s: float) -> None:
        """Note that they are used."""
        self._used_s.update(dict.fromkeys(some, now_s))

    def __contains__(self, one: T) -> bool:
        return one in self._used_s


@dataclass(slots=True)
class _Kind:
    """What the values of one name are, and how many rows had that kind, or were refused for another."""

    form: Form
    taken: int = 0
    refused: int = 0


@dataclass
class Known:
    """What is known of the predictions of one service. For the event loop alone."""

    names: _Lately[str] = field(default_factory=lambda: _Lately(MOST_NAMES))
    models: _Lately[str] = field(default_factory=lambda: _Lately(MOST_MODELS))
    shapes: _Lately[tuple[str, ...]] = field(default_factory=lambda: _Lately(MOST_SHAPES))
    _kinds: dict[str, _Kind] = field(default_factory=dict)

    def of_one_kind(self, prediction: Prediction) -> Prediction:
        """Return a prediction in which names of nulls alone have the kind that they have otherwise.

        Raises InputError for a name that has another kind in what was taken before. Where more rows were refused than
        taken the newer kind counts: what one odd request brought first keeps nobody out.
        """
        forms: dict[str, Form] = dict(prediction.forms)
        for name, form in forms.items():
            known = self._kinds.get(name)
            if known is not None and form == "nothing":
                forms[name] = known.form
            elif known is not None and form != known.form:
                known.refused += prediction.rows
                if known.refused <= known.taken:
                    raise _another_kind(prediction, name, form, known.form)
        return prediction._replace(forms=tuple(forms.items()))

    def has_room(self, prediction: Prediction, now_s: float) -> bool:
        """Tell whether a prediction's names and model are known, or there is room for them."""
        names = tuple(name for name, _ in prediction.forms)
        return (
            self.names.has_room(names, now_s)
            and self.models.has_room([prediction.model], now_s)
            and self.shapes.has_room([names], now_s)
        )

    def remember(self, earlier: Prediction, now_s: float) -> None:
        """Note what was in use before: of names with several kinds that of most rows."""
        with suppress(InputError):
            self.take(self.of_one_kind(earlier), now_s)

    def take(self, prediction: Prediction, now_s: float) -> None:
        """Note a prediction that was taken."""
        names = tuple(name for name, _ in prediction.forms)
        self.names.use(names, now_s)
        self.models.use([prediction.model], now_s)
        self.shapes.use([names], now_s)
        for name, form in prediction.forms:
            if form != "nothing":
                known = self._kinds.get(name)
                if known is None or known.form != form:
                    known = self._kinds[name] = _Kind(form)
                known.taken += prediction.rows
        if len(self._kinds) > 2 * MOST_NAMES:
            self._kinds = {name: kind for name, kind in self._kinds.items() if name in self.names}


def _another_kind(prediction: Prediction, name: str, form: Form, known: Form) -> InputError:
    return InputError(
        f"The prediction {name!r} holds {FORMS[form]}, and {FORMS[known]} are logged under this name for "
        f"{prediction.kept_for.service!r}.",
        hint="One name has one kind of value: log this one under another name.",
        prediction=name,
    )
