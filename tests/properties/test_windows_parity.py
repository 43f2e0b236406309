"""Online equals the offline join, bit for bit, and both equal plain loops, whatever happened to events and stores."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.windowed_shop import MINUTE_US, WINDOWS, Shop, sales_view

from featurestore.following import folds, follow
from featurestore.following.rows import EventEncoder
from featurestore.materialization import republish, succeeded
from featurestore.offline import groups
from featurestore.workspace import Workspace

SALES = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from((0, 1, 5_000_000, MINUTE_US, 11 * MINUTE_US, 13 * MINUTE_US)),
        st.integers(0, 7),
        st.sampled_from((None, 0.1, -0.0, 1e16, -1e16, 1e308, 5e-324, math.nan, math.inf, -math.inf)),
        st.sampled_from((None, "a", "b")),
    ),
    max_size=8,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), SALES),
        st.tuples(st.just("file"), SALES),
        st.tuples(st.just("wait"), st.sampled_from((1, 1_000_000, 2_500_000, MINUTE_US, 12 * MINUTE_US))),
        st.tuples(st.sampled_from(("fold", "republish", "restart", "lose", "put back")), st.none()),
    ),
    min_size=2,
    max_size=9,
)


class Life:
    """One example's project."""

    def __init__(self, root: Path, url: str | None, *, for_ever: bool) -> None:
        self.shop = Shop(root, url, sales_view(WINDOWS if for_ever else WINDOWS[:2]))
        self.shop.write([])  # the batch source is there, and empty
        self.before = self.everything()

    def everything(self) -> list[tuple[bytes, bytes]]:
        return [pair for batch in self.shop.workspace.online.scan(b"fs:shop:") for pair in batch]

    def take(self, step: str, what: Any) -> None:
        shop = self.shop
        if step in ("push", "file"):
            sales = [
                {"shop": of, "sold_at": shop.now_us - age, "id": f"e{name}", "v": value, "t": text}
                for of, age, name, value, text in what
            ]
            if step == "push" and sales:
                shop.push(sales)
            elif sales:
                shop.write(sales)
                shop.run()
        elif step == "wait":
            shop.wait(what)
        elif step == "fold":
            encoder = EventEncoder(shop.workspace.snapshot().views["sales"])
            keys = [key for key, _ in self.everything() if key.startswith(encoder.prefix)]
            for _ in range(2):
                folds.fold_records(shop.workspace, encoder, keys)
        elif step == "republish":
            succeeded(republish(shop.workspace))
        elif step == "restart":
            old = shop.workspace
            shop.workspace = Workspace(old.root, old.settings, clock=old.clock)
            old.close()
        else:  # an accident, after which the next run heals
            shop.workspace.online.delete(b"fs:shop:")
            for key, value in self.before if step == "put back" else ():
                shop.workspace.online.put(key, value)
            shop.run()
        if step == "file":
            self.before = self.everything()


@pytest.mark.parametrize("store", ["lmdb", "redis", "redis_cluster"])
def test_online_equals_offline_whatever_happened(request: pytest.FixtureRequest, store: str) -> None:
    url = None if store == "lmdb" else request.getfixturevalue(f"{store}_url")
    count = 12 if store == "lmdb" else 4

    # What fails is reported as it was found: making it smaller would take minutes.
    @settings(max_examples=examples(count), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(STEPS, st.booleans())
    def holds(steps: list[tuple[str, Any]], for_ever: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            # Redis counts down expiries by its own clock, which nobody moves.
            life = Life(Path(folder), url, for_ever=for_ever or url is not None)
            try:
                for step, what in steps:
                    life.take(step, what)
                    if life.shop.counted:
                        life.shop.check()
            finally:
                life.shop.workspace.online.delete(b"fs:shop:")
                life.shop.workspace.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "PAUSE_SECONDS", 0.0)
        patch.setattr(follow, "MOST_OF_ONE", 3)
        holds()
