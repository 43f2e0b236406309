"""The facts of a certificate, by queries of their own.

Plain joins on ``fs_seq`` look up the join's choice again in the files: do key and times allow it, how old is it,
what does it hold? For the other entity rows they find the reason without the join's method: from each key's first
event, and from the latest event at or before the row's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.engine.duck.choose import EntityRows, keep_chosen
from featurestore.engine.duck.identity import known
from featurestore.engine.duck.offline_sql import log
from featurestore.engine.interface import REASONS, JoinFacts, ViewJoin
from featurestore.errors import CertificateError

if TYPE_CHECKING:
    import pyarrow as pa

AVAILABLE = f"greatest(l.event_ts, {known('l')})"


def examine(entities: EntityRows, view: ViewJoin, number: int, sequences: pa.Array) -> JoinFacts:
    """Return the facts of a join's view by its ``number``, for which the join chose ``sequences``.

    A value counts as not yet available if ``as_of="event"`` would have answered: there is a row at or before the
    time, and within the ttl, but it was not known yet. Raises CertificateError when a chosen row belongs to
    another entity or is expired, or when a row that should have been chosen was not.
    """
    nulls = dict.fromkeys(REASONS, 0)
    some_null = " OR ".join(f"{column} IS NULL" for column in entities.columns(view))
    counted = f"SELECT count(*) FILTER ({some_null}) FROM entity_rows"
    ((nulls["null_key"],),) = entities.connection.execute(counted).fetchall()
    if not view.files:
        nulls["no_entity"] = entities.count - nulls["null_key"]
        return JoinFacts(view.name, nulls, None, 0)
    keep_chosen(entities, sequences, number)
    nulls |= dict(entities.connection.execute(_reasons(entities, view, number)).fetchall())
    found = entities.connection.execute(_chosen(entities, view, number)).fetchall()
    ((chosen, allowed, from_future, greatest_age_us),) = found
    missed = nulls.pop("missed", 0)
    if chosen != allowed or chosen + sum(nulls.values()) != entities.count or missed:
        raise CertificateError(
            f"The join of {view.name!r} does not hold: of {entities.count} entity rows {chosen} have an answer, "
            f"{chosen - allowed} of these by a row of another entity or an expired one, and {missed} lack theirs.",
            hint="Run `fs verify`; if the files are whole, please report this.",
            view=view.name,
        )
    return JoinFacts(view.name, nulls, greatest_age_us, from_future)


def _chosen(entities: EntityRows, view: ViewJoin, number: int) -> str:
    """Count chosen rows, those that may be chosen, those from the future; greatest age."""
    since = AVAILABLE if view.as_of == "available" else "l.event_ts"
    age = "r.at_us - epoch_us(l.event_ts)"
    allowed = entities.on_keys(view, "l", "r")
    if view.view.ttl_us is not None:
        allowed += f" AND {age} <= {view.view.ttl_us}"
    future = f"epoch_us({since}) > r.at_us"
    return (
        f"SELECT count(*), count(*) FILTER ({allowed}), count(*) FILTER ({future}), max({age}) "
        f"FROM {log(view.files)} l JOIN chosen_{number} c ON l.fs_seq = c.seq JOIN entity_rows r ON r.row = c.row"
    )


def _reasons(entities: EntityRows, view: ViewJoin, number: int) -> str:
    """Count the entity rows with a key and without an answer by reason."""
    ttl_us, reach_us = view.view.ttl_us, view.view.reach_us
    keys = entities.keys(view)
    on_frame = " AND ".join(f"r.{column} = k.{column}" for column in entities.columns(view))
    not_before = "true" if reach_us is None else f"l.event >= s.first_at - {reach_us}"
    within = "w.event IS NOT NULL" if ttl_us is None else f"w.event >= m.at_us - {ttl_us}"
    known = "w.available <= m.at_us" if view.as_of == "available" else "true"
    return f"""
        WITH missing AS MATERIALIZED (
            SELECT k.id, r.at_us FROM entity_rows r JOIN {keys} k ON {on_frame}
            JOIN chosen_{number} c ON c.row = r.row WHERE c.seq IS NULL
        ), spans AS MATERIALIZED (
            SELECT id, min(at_us) AS first_at, max(at_us) AS last_at FROM missing GROUP BY id
        ), known AS (
            SELECT k.id, epoch_us(l.event_ts) AS event, epoch_us({AVAILABLE}) AS available
            FROM {log(view.files)} l JOIN {keys} k ON {entities.on_keys(view, "l", "k")}
        ), firsts AS (
            SELECT id, min(event) AS event FROM known SEMI JOIN spans USING (id) GROUP BY id
        ), recent AS (
            SELECT l.id, l.event, l.available FROM known l JOIN spans s ON l.id = s.id
            WHERE l.event <= s.last_at AND {not_before}
        )
        SELECT CASE
            WHEN f.event IS NULL THEN 'no_entity'
            WHEN f.event > m.at_us THEN 'nothing_before'
            WHEN {within} AND {known} THEN 'missed'
            WHEN {within} THEN 'not_yet_available'
            ELSE 'expired'
        END AS reason, count(*)
        FROM missing m LEFT JOIN firsts f ON f.id = m.id
        ASOF LEFT JOIN recent w ON w.id = m.id AND m.at_us >= w.event
        GROUP BY reason
    """
