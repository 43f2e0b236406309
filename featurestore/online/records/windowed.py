"""Windowed records: the bytes of one entity's tiles and of its newest events, as `docs/reference/wire-format.md` says.

All numbers but the checksums are little-endian, and nothing is aligned.

======  =====  ==============================================================================
offset  bytes  what
======  =====  ==============================================================================
0       1      format version, 2
1       3      zero
4       4      length of this part, its checksum included: the newest events begin there
8       8      base_seq: every event with this ``fs_seq`` or a smaller one is in the tiles
16      8      event_ts of the newest event in the tiles, UTC microseconds; -2**63: none
24      8      schema id: the first 8 bytes of BLAKE2b-256 of the schema document
32      ...    sections, in the order of `_sections`
...     4      CRC-32 (zlib) of the key followed by all bytes of this part before, big-endian
...     ...    the newest events as they came, each with its length first and its own CRC-32
======  =====  ==============================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple
from zlib import crc32

from featurestore.online.records.codec import CRC_BYTES, damaged
from featurestore.windows.layout import Layout
from featurestore.windows.numbers import joined, limbs_of
from featurestore.windows.tiles import Part, TileEvent, Tiles

FORMAT = 2
HEADER = struct.Struct("<BxxxIqq8s")
SCHEMA_AT, BASE_AT, NEWEST_AT = 24, 8, 16
MOST_WAITING = 32
"""So many of the newest events are kept as they came before they go into the tiles."""
MOST_UNSETTLED = 256
"""And so many whose instant is too near for clocks that differ: a record stays small whatever is pushed."""

_U16, _U32, _I64, _F64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<d")
EVENT = struct.Struct("<Hqqq")
_LAST = struct.Struct("<qqq")
_LAST_DOUBLE, _LAST_INTEGER = struct.Struct("<qqqd"), struct.Struct("<qqqq")
_SEEN = struct.Struct("<qq")


class Head(NamedTuple):
    """What a record begins with."""

    tiles_end: int
    base_sequence: int
    newest_us: int
    schema_id: bytes


def head_of(record: bytes) -> Head:
    """Return what a record begins with."""
    _, end, base, newest, schema_id = HEADER.unpack_from(record)
    return Head(end, base, newest, schema_id)


def is_windowed(value: bytes) -> bool:
    """Tell whether a value looks like a record of this format."""
    return len(value) >= HEADER.size + CRC_BYTES and value[0] == FORMAT and _U32.unpack_from(value, 4)[0] <= len(value)


def is_newer(value: bytes, instant_us: int) -> bool:
    """Tell whether a value is a record whose tiles hold an event after an instant."""
    return is_windowed(value) and _I64.unpack_from(value, NEWEST_AT)[0] > instant_us


def is_intact(key: bytes, record: bytes) -> bool:
    """Tell whether every checksum of a record is that of its key and bytes."""
    if not is_windowed(record):
        return False
    (end,), key_crc = _U32.unpack_from(record, 4), crc32(key)
    if end < HEADER.size + CRC_BYTES or not _is_checked(key_crc, record[:end]):
        return False
    newest = record[end:]
    length = int.from_bytes(newest[:2], "little")
    if length > CRC_BYTES and len(newest) % length == 0:  # nearly always all are of one length
        entries, checksums = zip(*_checksummed(length).iter_unpack(newest), strict=True)
        if tuple(map(crc32, entries, repeat(key_crc))) == checksums:
            return True
    try:
        return all(_is_checked(key_crc, entry) for entry in entries_of(record))
    except ValueError:
        return False


@lru_cache(maxsize=64)
def _checksummed(length: int) -> struct.Struct:
    return struct.Struct(f">{length - CRC_BYTES}sI")


def _is_checked(key_crc: int, part: bytes) -> bool:
    return crc32(part[:-CRC_BYTES], key_crc) == int.from_bytes(part[-CRC_BYTES:])


def checked(key: bytes, part: bytes) -> bytes:
    """Return a part of a record with its checksum."""
    return part + crc32(part, crc32(key)).to_bytes(CRC_BYTES)


def entries_of(record: bytes) -> Iterator[bytes]:
    """Yield the newest events as bytes; raises ValueError where their lengths do not fit."""
    return _entries_in(record, head_of(record).tiles_end)


def _entries_in(record: bytes, place: int) -> Iterator[bytes]:
    while place < len(record):
        (length,) = _U16.unpack_from(record, place) if place + 2 <= len(record) else (0,)
        if length < EVENT.size + CRC_BYTES or place + length > len(record):
            raise ValueError("a newest event is cut off")
        yield record[place : place + length]
        place += length


def readable_entries(record: bytes) -> Iterator[bytes]:
    """Yield the newest events as bytes, up to where their lengths fit: for those who look over many records."""
    with suppress(ValueError):
        yield from entries_of(record)


def events_after(events: bytes, sequence: int, place: int = 0) -> bytes:
    """Return those of some events, one after the other from a place on, that come after a number, as they are."""
    return b"".join(entry for entry in _entries_in(events, place) if _I64.unpack_from(entry, 2)[0] > sequence)


def first_length(events: bytes) -> int:
    """Return how long the first of some events is."""
    return int(_U16.unpack_from(events)[0])


# Newest events --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def event_shape(layout: Layout) -> tuple[str, int, struct.Struct | None]:
    """Return the struct codes of the values that are kept, how many bytes hold their null marks and conditions, and

    the whole entry of an event without nulls, if it has no texts.
    """
    codes = "".join("d" if kind == "float" else "t" if kind == "text" else "q" for kind in layout.kinds)
    marks = -(-(len(codes) + len(layout.conditions)) // 8)
    return codes, marks, None if "t" in codes else struct.Struct(f"<Hqqq{marks}s{codes}")


def encode_event(key: bytes, layout: Layout, event: TileEvent) -> bytes:
    """Return an event as it is appended to a record."""
    codes, marks, whole = event_shape(layout)
    bits = event.true << len(codes)
    if whole is not None and None not in event.values:
        values = event.values[:-1] if layout.event_time else event.values
        marks_of = bits.to_bytes(marks, "little")
        entry = whole.pack(whole.size + CRC_BYTES, event.sequence, event.event_us, event.known_us, marks_of, *values)
        return entry + crc32(entry, crc32(key)).to_bytes(CRC_BYTES)
    body = b""
    for place, code in enumerate(codes):
        value = event.values[place]
        if value is None:
            bits |= 1 << place
        elif code == "t":
            body += _U16.pack(len(value)) + value
        else:
            body += struct.pack(f"<{code}", value)
    length = EVENT.size + marks + len(body) + CRC_BYTES
    head = EVENT.pack(length, event.sequence, event.event_us, event.known_us)
    return checked(key, head + bits.to_bytes(marks, "little") + body)


def decode_event(layout: Layout, entry: bytes) -> TileEvent:
    """Return the event of an entry."""
    codes, marks, whole = event_shape(layout)
    if whole is not None and len(entry) == whole.size + CRC_BYTES:
        _, sequence, event_us, known_us, marks_of, *found = whole.unpack_from(entry)
        if layout.event_time:
            found.append(event_us)
        true = int.from_bytes(marks_of, "little") >> len(codes)
        return TileEvent(sequence, event_us, known_us, tuple(found), true)
    _, sequence, event_us, known_us = EVENT.unpack_from(entry)
    place = EVENT.size + marks
    bits = int.from_bytes(entry[EVENT.size : place], "little")
    values: list[Any] = []
    for number, code in enumerate(codes):
        if bits >> number & 1:
            values.append(None)
        elif code == "t":
            (length,) = _U16.unpack_from(entry, place)
            values.append(entry[place + 2 : place + 2 + length])
            place += 2 + length
        else:
            values.append((_F64 if code == "d" else _I64).unpack_from(entry, place)[0])
            place += 8
    if layout.event_time:
        values.append(event_us)
    return TileEvent(sequence, event_us, known_us, tuple(values), bits >> len(codes))


# Tiles ----------------------------------------------------------------------------------------------------------------


class Texts:
    """Texts of a record, each once, by their offsets."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, int] = {}

    def place(self, text: bytes) -> int:
        """Return where a text is, and put it there."""
        if text not in self._places:
            self._places[text] = len(self.data)
            self.data += _U16.pack(len(text)) + text
        return self._places[text]


def encode(key: bytes, tiles: Tiles) -> bytes:
    """Return the record of an entity's tiles, without newest events."""
    layout, texts = tiles.layout, Texts()
    counts = [_U32.pack(len(starts)) for starts in tiles.starts]
    scales, entries = bytearray(), bytearray()
    for starts, parts, resolution in zip(tiles.starts, tiles.parts, layout.resolutions, strict=True):
        columns: list[tuple[str, Sequence[Any]]] = []
        for (place, _), part in zip(resolution.parts, parts, strict=True):
            columns += _columns(part, layout.groups[place].kind, scales, texts)
        shape = struct.Struct("<" + "".join(code for code, _ in columns))
        entries += struct.pack(f"<{len(starts)}q", *starts)
        for row in zip(*(values for _, values in columns), strict=True):
            entries += shape.pack(*row)
    lists = bytearray()
    for group, last, seen in zip(layout.groups, tiles.lasts, tiles.distinct, strict=True):
        if group.last:
            lists += _U16.pack(len(last))
            for *order, value in last:
                lists += _LAST.pack(*order) + _packed(value, group.kind, texts)
        if group.distinct:
            lists += _U16.pack(len(seen))
            for code, at_us in seen.items():
                lists += _SEEN.pack(code, at_us)
    body = b"".join((*counts, _U16.pack(len(scales)), scales, entries, lists, _U32.pack(len(texts.data)), texts.data))
    end = HEADER.size + len(body) + CRC_BYTES
    return checked(key, HEADER.pack(FORMAT, end, tiles.base_sequence, tiles.newest_us, layout.id) + body)


def _packed(value: Any, kind: str, texts: Texts) -> bytes:
    if kind == "text":
        return _I64.pack(texts.place(value))
    return struct.pack("<d" if kind == "float" else "<q", value)


def _columns(part: Part, kind: str, scales: bytearray, texts: Texts) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the struct code and the values of each number of an entry; adds the scales of its sums."""
    yield "I", part.counts
    if part.sums is not None and kind == "float":
        yield "B", part.sums.marks
    for sums in (part.sums, part.squares):
        if sums is not None:
            limbs, exponents = limbs_of(sums.integers, sums.exponent)
            scales += struct.pack(f"<B{len(exponents)}h", len(exponents), *exponents)
            for limb in limbs:
                yield "q", limb
    code = "d" if kind == "float" else "q"
    for column in (part.least, part.greatest):
        if column is not None:
            yield code, [0 if value is None else value for value in column]
    if part.first is not None:
        for place in range(3):
            yield "q", [0 if item is None else item[place] for item in part.first]
        values = [None if item is None else item[3] for item in part.first]
        if kind == "text":
            yield "q", [0 if value is None else texts.place(value) for value in values]
        else:
            yield code, [0 if value is None else value for value in values]


class Sections(NamedTuple):
    """Where the parts of a record are."""

    counts: tuple[int, ...]
    exponents: Exponents
    starts: tuple[int, ...]
    """Where the starts of each resolution begin."""
    lists: int


Exponents = tuple[tuple[int, ...], ...]
"""The exponents of the limbs of each sum of a record."""


def exponents_of(scales: bytes) -> Exponents:
    """Return what the scales of a record say."""
    place, found = 0, []
    while place < len(scales):
        found.append(struct.unpack_from(f"<{scales[place]}h", scales, place + 1))
        place += 1 + 2 * scales[place]
    return tuple(found)


@lru_cache(maxsize=256)
def shapes_of(layout: Layout, limbs: tuple[int, ...]) -> tuple[Shape, ...]:
    """Return how to read an entry of each resolution; ``limbs`` says how many each sum has."""
    number, shapes = 0, []
    for resolution in layout.resolutions:
        codes, fields = "", list[dict[str, tuple[int, int]]]()
        for group, partials in resolution.parts:
            kind, found = layout.groups[group].kind, dict[str, tuple[int, int]]()
            for partial in partials:
                if partial in ("sum", "square"):
                    if partial == "sum" and kind == "float":
                        found["marks"] = len(codes), number
                        codes += "B"
                    found[partial] = len(codes), number
                    codes += "q" * limbs[number]
                    number += 1
                elif partial == "first":
                    found[partial] = len(codes), number
                    codes += "qqq" + ("d" if kind == "float" else "q")
                else:
                    found[partial] = len(codes), number
                    codes += "I" if partial == "count" else "d" if kind == "float" else "q"
            fields.append(found)
        shapes.append(Shape(struct.Struct("<" + codes), tuple(fields)))
    return tuple(shapes)


class Shape(NamedTuple):
    """How to read an entry of one resolution."""

    entry: struct.Struct
    parts: tuple[dict[str, tuple[int, int]], ...]
    """For each part the place of each partial among the entry's numbers, and the number of sums before it."""


def sections_of(layout: Layout, record: bytes) -> Sections:
    """Return where the parts of a record are."""
    place = HEADER.size
    counts = struct.unpack_from(f"<{len(layout.resolutions)}I", record, place)
    place += 4 * len(counts)
    (length,) = _U16.unpack_from(record, place)
    exponents = exponents_of(record[place + 2 : place + 2 + length])
    place += 2 + length
    starts = []
    for count, shape in zip(counts, shapes_of(layout, tuple(map(len, exponents))), strict=True):
        starts.append(place)
        place += count * (8 + shape.entry.size)
    return Sections(counts, exponents, tuple(starts), place)


class Lists(NamedTuple):
    """The last and the distinct values of each group."""

    lasts: list[list[tuple[int, int, int, Any]]]
    distinct: list[dict[int, int]]
    texts: bytes


def lists_of(layout: Layout, record: bytes, place: int, wanted: Collection[tuple[int, str]] | None = None) -> Lists:
    """Return the lists of a record, or those of some groups' ``last`` and ``distinct``; texts still as their places."""
    lasts: list[list[tuple[int, int, int, Any]]] = [[] for _ in layout.groups]
    distinct: list[dict[int, int]] = [{} for _ in layout.groups]
    for number, group in enumerate(layout.groups):
        for partial, kept in (("last", group.last), ("distinct", group.distinct)):
            if not kept:
                continue
            item = _SEEN if partial == "distinct" else _LAST_DOUBLE if group.kind == "float" else _LAST_INTEGER
            begin = place + 2
            place = begin + _U16.unpack_from(record, place)[0] * item.size
            if wanted is not None and (number, partial) not in wanted:
                continue
            if partial == "last":
                lasts[number] = list(item.iter_unpack(record[begin:place]))
            else:
                distinct[number] = dict(item.iter_unpack(record[begin:place]))
    (length,) = _U32.unpack_from(record, place)
    return Lists(lasts, distinct, record[place + 4 : place + 4 + length])


def text_at(texts: bytes, place: int) -> bytes:
    """Return a text of a record."""
    (length,) = _U16.unpack_from(texts, place)
    return texts[place + 2 : place + 2 + length]


def decode(key: bytes, layout: Layout, record: bytes) -> Tiles:
    """Return the tiles of a record; raises DamagedRecordError."""
    try:
        return _decode(layout, record)
    except (struct.error, ValueError, IndexError) as error:
        raise damaged(key, f"cannot be read: {error}") from None


def _decode(layout: Layout, record: bytes) -> Tiles:
    head, sections = head_of(record), sections_of(layout, record)
    tiles = Tiles(layout)
    tiles.base_sequence, tiles.newest_us = head.base_sequence, head.newest_us
    lists = lists_of(layout, record, sections.lists)
    shapes = shapes_of(layout, tuple(map(len, sections.exponents)))
    for number, (count, begin, shape) in enumerate(zip(sections.counts, sections.starts, shapes, strict=True)):
        tiles.starts[number] = list(struct.unpack_from(f"<{count}q", record, begin))
        first = begin + 8 * count
        entries = record[first : first + count * shape.entry.size]
        rows = list(shape.entry.iter_unpack(entries)) if entries else [()] * count  # lists alone have no entries
        for (place, _), part, fields in zip(
            layout.resolutions[number].parts, tiles.parts[number], shape.parts, strict=True
        ):
            _fill(part, fields, sections.exponents, rows, layout.groups[place].kind, lists.texts)
    for place, group in enumerate(layout.groups):
        last = lists.lasts[place]
        if group.kind == "text":
            last = [(*order, text_at(lists.texts, value)) for *order, value in last]  # type: ignore[misc]
        tiles.lasts[place], tiles.distinct[place] = last, lists.distinct[place]
    return tiles


def _fill(
    part: Part, fields: dict[str, Any], exponents: Exponents, rows: list[tuple[Any, ...]], kind: str, texts: bytes
) -> None:
    part.counts = [row[fields["count"][0]] for row in rows]
    for name, sums in (("sum", part.sums), ("square", part.squares)):
        if sums is not None:
            place, number = fields[name]
            own = exponents[number]
            sums.exponent = min(own)
            sums.integers = [joined(row[place : place + len(own)], own)[0] for row in rows]
            mark = fields["marks"][0] if name == "sum" and "marks" in fields else None
            sums.marks = [0 if mark is None else row[mark] for row in rows]
    for name, column in (("min", part.least), ("max", part.greatest)):
        if column is not None:
            place = fields[name][0]
            column[:] = [row[place] if count else None for row, count in zip(rows, part.counts, strict=True)]
    if part.first is not None:
        place = fields["first"][0]
        found = [row[place : place + 4] if count else None for row, count in zip(rows, part.counts, strict=True)]
        if kind == "text":
            found = [None if item is None else (*item[:3], text_at(texts, item[3])) for item in found]
        part.first[:] = found


def empty(key: bytes, layout: Layout) -> bytes:
    """Return the record of an entity without events, to append its first ones to."""
    return checked(key, _empty(layout))


@lru_cache(maxsize=64)
def _empty(layout: Layout) -> bytes:
    return encode(b"", Tiles(layout))[:-CRC_BYTES]


def folded(
    key: bytes, layout: Layout, record: bytes, now_us: int, *, hashed: Any, settled_us: int, least: int = 0
) -> bytes | None:
    """Return the record with the newest events in its tiles that have been available for ``settled_us``.

    The others stay beside them; of more than `MOST_UNSETTLED` all that are available go. None where
    fewer than ``least`` would go.
    Raises DamagedRecordError.
    """
    if not is_intact(key, record):
        raise damaged(key, "does not match its checksums")
    waiting, settled = list[bytes](), list[bytes]()
    last = head_of(record).base_sequence
    entries = list(entries_of(record))
    until_us = now_us - (settled_us if len(entries) <= MOST_UNSETTLED else 0)
    for entry in entries:
        _, sequence, event_us, known_us = EVENT.unpack_from(entry)
        last = max(last, sequence)
        (settled if max(event_us, known_us) <= until_us else waiting).append(entry)
    if len(settled) < least:
        return None
    tiles = decode(key, layout, record)
    tiles.add([decode_event(layout, entry) for entry in settled], hashed=hashed)
    tiles.base_sequence = last
    tiles.expire(now_us)
    return encode(key, tiles) + b"".join(waiting)
