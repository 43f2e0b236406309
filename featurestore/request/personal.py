"""Which features of a request are personal: tagged so, or made of what is."""

from __future__ import annotations

import json
from collections.abc import Iterator

from featurestore.definitions import FeatureView, Field
from featurestore.request.features import FeatureRequest, OnDemandRead, OutputColumn
from featurestore.statistics.columns import PERSONAL, is_personal


def is_hidden(request: FeatureRequest, output: OutputColumn) -> bool:
    """Tell whether no value of a feature may show: it is tagged so, or is not tagged and made of something that is."""
    field = output.field
    if PERSONAL in field.tags:
        return is_personal(field)
    if output.read is not None:
        return any(map(is_personal, _made_of(request.reads[output.read].view, field.name)))
    assert output.on_demand is not None
    return any(is_personal(each) for _, each in _inputs(request, request.on_demand[output.on_demand]))


def _inputs(request: FeatureRequest, computed: OnDemandRead) -> Iterator[tuple[str, Field]]:
    """Yield the fields that an on-demand view's features may be made of, with the name of their view or "request"."""
    for argument in computed.inputs:
        if argument.read is None:
            yield "request", argument.field
        else:
            view = request.reads[argument.read].view
            for field in dict.fromkeys((argument.field, *_made_of(view, argument.name))):
                yield view.name, field


def left_out(request: FeatureRequest) -> dict[str, str]:
    """Return the features of which no values show in statistics and in a sample, and why, with the way out."""
    return {output.name: _why_hidden(request, output) for output in request.outputs if is_hidden(request, output)}


def _why_hidden(request: FeatureRequest, output: OutputColumn) -> str:
    name = f"{output.name!r} is left out"
    if is_personal(output.field):
        return f"{name}: it is tagged {PERSONAL}."
    if output.read is not None:
        view = request.reads[output.read].view
        inputs = [(view.name, field) for field in _made_of(view, output.field.name)]
        other = ""
    else:
        assert output.on_demand is not None
        inputs = [*_inputs(request, request.on_demand[output.on_demand])]
        among = {view for view, field in inputs if is_personal(field)}
        fewer = {view: [each.name for of, each in inputs if of == view and not is_personal(each)] for view in among}
        selections = [f"{view}[{json.dumps(names)}]" for view, names in sorted(fewer.items()) if names]
        other = f", or let it select fewer inputs, such as {' and '.join(selections)}" if selections else ""
    personal = " and ".join(sorted({f"{view}:{field.name}" for view, field in inputs if is_personal(field)}))
    return (
        f"{name}: it may be made of {personal}, tagged {PERSONAL}. If its values may show, tag it "
        f'`{PERSONAL}: "false"`{other}.'
    )


def inherits(request: FeatureRequest) -> frozenset[str]:
    """Return on-demand features that are hidden for an input and not for a tag of their own."""
    return frozenset(
        output.name for output in request.outputs if output.on_demand is not None and not is_personal(output.field)
    ) & frozenset(left_out(request))


def _made_of(view: FeatureView, feature: str) -> list[Field]:
    names = view.made_of(feature)
    return [field for field in view.stored if field.name in names]
