"""The scripts that run inside Redis: compare-and-set, and repair. Each call is atomic and returns one number per key.

Versions are compared as four unsigned 32-bit words: a Lua number holds no 64-bit integer, and ``<`` on strings
follows the server's locale. Keys and records are sent unchanged; nothing here depends on a record's content after its
header.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featurestore.online.interface import FOREIGN, Append, Fold, Move, Placed, Repair, Slice, Write
from featurestore.online.records.codec import FORMAT_VERSION, SMALLEST_RECORD_BYTES
from featurestore.online.records.windowed import BASE_AT, FORMAT, HEADER, SCHEMA_AT

NEVER = b""
EXPIRED = b"0"

# Codes are those of WriteResult. ARGV: record and instant of expiry (ms; empty: never; 0: already past) per key.
SET_NEWEST = f"""
local unpack_words, codes = struct.unpack, {{}}
for i, key in ipairs(KEYS) do
  local record, expiry = ARGV[2 * i - 1], ARGV[2 * i]
  local old, code = redis.pcall('GET', key), 0
  if type(old) == 'table' then
    if not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
    code = 3
  elseif old then
    if #old < {SMALLEST_RECORD_BYTES} or string.byte(old) ~= {FORMAT_VERSION} then
      code = 3
    else
      local a, b, c, d = unpack_words('>I4I4I4I4', record, 2)
      local e, f, g, h = unpack_words('>I4I4I4I4', old, 2)
      if a ~= e then
        if a < e then code = 1 end
      elseif b ~= f then
        if b < f then code = 1 end
      elseif c ~= g then
        if c < g then code = 1 end
      elseif d < h then
        code = 1
      end
    end
  end
  if code == 0 then
    if expiry == '' then
      redis.call('SET', key, record)
    elseif expiry == '0' then
      if old then redis.call('DEL', key) end
      code = 2
    else
      redis.call('SET', key, record, 'PXAT', expiry)
    end
  end
  codes[i] = code
end
return codes
"""

# ARGV: the version that goes, the replacement (empty: none) and its expiry per key.
REPAIR = f"""
local codes = {{}}
for i, key in ipairs(KEYS) do
  local version, record, expiry = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local old = redis.pcall('GET', key)
  if type(old) == 'table' and not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
  local is_record = type(old) == 'string' and #old >= {SMALLEST_RECORD_BYTES} and string.byte(old) == {FORMAT_VERSION}
  if is_record and string.sub(old, 2, 17) == version then
    if record == '' or expiry == '0' then
      redis.call('DEL', key)
    elseif expiry == '' then
      redis.call('SET', key, record)
    else
      redis.call('SET', key, record, 'PXAT', expiry)
    end
    codes[i] = 1
  else
    codes[i] = 0
  end
end
return codes
"""


# Windowed records expire by the server's clock alone: a caller's may be ahead. Numbers of events are compared as two
# unsigned 32-bit words; one with its sign bit set is that of a record without events.
_WINDOWED = f"""
local function is_after(high, low, base_high, base_low)
  if base_high >= 2147483648 then return true end
  return high > base_high or (high == base_high and low > base_low)
end
local function events_after(events, at, high, low)
  local more = ''
  while at < #events do
    local length, its_low, its_high = struct.unpack('<I2I4I4', events, at)
    if length < 1 then break end
    if is_after(its_high, its_low, high, low) then more = more .. string.sub(events, at, at + length - 1) end
    at = at + length
  end
  return more
end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function postpone(key, expiry)
  local left = redis.call('PTTL', key)
  if left < 0 then return end
  if expiry == '' then
    redis.call('PERSIST', key)
  elseif now_ms + left < tonumber(expiry) then
    redis.call('PEXPIREAT', key, expiry)
  end
end
local function set(key, record, expiry)
  if expiry == '' then redis.call('SET', key, record) else redis.call('SET', key, record, 'PXAT', expiry) end
end
local function layout_of(record)
  return string.sub(record, {SCHEMA_AT + 1}, {SCHEMA_AT + 8})
end
local function is_windowed(record)
  return #record >= {HEADER.size} and string.byte(record) == {FORMAT}
end
"""

# KEYS: those of the plain values that move, then those of events or records. ARGV: how many values move; of each
# whether it must exist, what it is, and what it becomes.
_MOVES = """
local moving = tonumber(ARGV[1])
local function are_as_before()
  for i = 1, moving do
    local value = redis.pcall('GET', KEYS[i])
    if type(value) == 'table' or (ARGV[3 * i - 1] == '1') ~= (value and true or false) then return false end
    if value and value ~= ARGV[3 * i] then return false end
  end
  return true
end
local function have_moved()
  for i = 1, moving do
    if redis.pcall('GET', KEYS[i]) ~= ARGV[3 * i + 1] then return false end
  end
  return true
end
local function move()
  for i = 1, moving do redis.call('SET', KEYS[i], ARGV[3 * i + 1]) end
end
"""

# ARGV, after those of the moves: of each record the two words of its first event's number, its events,
# the record to make, its expiry. Returns a code of `Advanced`, then the bytes of newest events in each record.
ADVANCE = f"""
{_WINDOWED}
{_MOVES}
if not are_as_before() then return {{1}} end
local heads, begin = {{}}, 3 * moving - 3
for i = moving + 1, #KEYS do
  local place = begin + 5 * (i - moving)
  local head = redis.pcall('GETRANGE', KEYS[i], 0, {HEADER.size - 1})
  if type(head) == 'table' then
    if not string.find(head.err, 'WRONGTYPE', 1, true) then return head end
    head = false
  elseif head ~= '' and not is_windowed(head) then
    head = false
  elseif head ~= '' and layout_of(head) ~= layout_of(ARGV[place + 3]) then
    return {{2}}
  end
  heads[i] = head
end
local sizes = {{0}}
for i = moving + 1, #KEYS do
  local key, place = KEYS[i], begin + 5 * (i - moving)
  local high, low, events = tonumber(ARGV[place]), tonumber(ARGV[place + 1]), ARGV[place + 2]
  local record, expiry, head = ARGV[place + 3], ARGV[place + 4], heads[i]
  if head == '' and redis.call('EXISTS', key) == 1 then head = redis.call('GETRANGE', key, 0, {HEADER.size - 1}) end
  if not head then
    sizes[#sizes + 1] = {FOREIGN}
  elseif head == '' then
    set(key, record .. events, expiry)
    sizes[#sizes + 1] = #events
  else
    local base_low, base_high = struct.unpack('<I4I4', head, {BASE_AT + 1})
    if not is_after(high, low, base_high, base_low) then events = events_after(events, 1, base_high, base_low) end
    if events ~= '' then
      local length = redis.call('APPEND', key, events)
      postpone(key, expiry)
      sizes[#sizes + 1] = length - struct.unpack('<I4', head, 5)
    else
      sizes[#sizes + 1] = 0
    end
  end
end
move()
return sizes
"""

# ARGV: per key the old beginning, the new one, and the expiry.
FOLD = f"""
{_WINDOWED}
local codes = {{}}
for i, key in ipairs(KEYS) do
  local old, new, expiry = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local record = redis.pcall('GET', key)
  if type(record) == 'table' and not string.find(record.err, 'WRONGTYPE', 1, true) then return record end
  if type(record) == 'string' and string.sub(record, 1, #old) == old then
    redis.call('SET', key, new .. string.sub(record, #old + 1), 'KEEPTTL')
    postpone(key, expiry)
    codes[i] = 1
  else
    codes[i] = 0
  end
end
return codes
"""

# ARGV, after those of the moves: per record itself, the two words of its number, the expiry, and what a damaged record
# there begins with. Returns
# a code of `Advanced`, then those of WriteResult. After a lost connection the same is placed again.
PLACE = f"""
{_WINDOWED}
{_MOVES}
if not (are_as_before() or have_moved()) then return {{1}} end
local codes = {{0}}
for i = moving + 1, #KEYS do
  local key, place = KEYS[i], 3 * moving - 3 + 5 * (i - moving)
  local record, high, low, expiry = ARGV[place], tonumber(ARGV[place + 1]), tonumber(ARGV[place + 2]), ARGV[place + 3]
  local damaged = ARGV[place + 4]
  local old, code, more = redis.pcall('GET', key), 0, ''
  if type(old) == 'table' then
    if not string.find(old.err, 'WRONGTYPE', 1, true) then return old end
    code = 3
  elseif old and damaged ~= '' and string.sub(old, 1, #damaged) == damaged then
    more = events_after(old, #damaged + 1, high, low)
  elseif old and not is_windowed(old) then
    code = 3
  elseif old then
    local base_low, base_high = struct.unpack('<I4I4', old, {BASE_AT + 1})
    if base_high < 2147483648 and is_after(base_high, base_low, high, low) then
      code = 1
    else
      more = events_after(old, struct.unpack('<I4', old, 5) + 1, high, low)
    end
  end
  if more ~= '' and layout_of(old) ~= layout_of(record) then code = 1 end
  if code == 0 then
    if more ~= '' then
      redis.call('SET', key, record .. more, 'KEEPTTL')
      postpone(key, expiry)
    elseif expiry ~= '' and tonumber(expiry) <= now_ms then
      redis.call('DEL', key)
      code = 2
    else
      set(key, record, expiry)
    end
  end
  codes[#codes + 1] = code
end
move()
return codes
"""


def advance_arguments(slice_: Slice[Append]) -> list[bytes | int]:
    """Return number of keys, keys and arguments of ADVANCE."""
    arguments = list(_moves(slice_.moves, [append.key for append in slice_.items]))
    for append in slice_.items:
        arguments += [*_words(append.sequence), append.events, append.record, _instant(append.expire_at_ms)]
    return arguments


def fold_arguments(folds: Sequence[Fold]) -> list[bytes | int]:
    """Return number of keys, keys and arguments of FOLD."""
    arguments: list[bytes | int] = [len(folds), *[fold.key for fold in folds]]
    for fold in folds:
        arguments += [fold.old, fold.new, _instant(fold.expire_at_ms)]
    return arguments


def place_arguments(slice_: Slice[Placed]) -> list[bytes | int]:
    """Return number of keys, keys and arguments of PLACE."""
    arguments = list(_moves(slice_.moves, [each.key for each in slice_.items]))
    for each in slice_.items:
        arguments += [each.record, *_words(each.sequence), _instant(each.expire_at_ms), each.damaged]
    return arguments


def _instant(expiry_ms: int | None) -> bytes | int:
    return NEVER if expiry_ms is None else max(expiry_ms, 1)  # Redis knows no earlier one


def _moves(moves: Sequence[Move], keys: Sequence[bytes]) -> Iterator[bytes | int]:
    """Yield number of keys, keys, and the arguments of the moves."""
    yield len(moves) + len(keys)
    yield from (move.key for move in moves)
    yield from keys
    yield len(moves)
    for move in moves:
        yield from (0 if move.before is None else 1, move.before or b"", move.after)


def _words(number: int) -> tuple[int, int]:
    """Return the upper and the lower half of 64 bits."""
    bits = number & (1 << 64) - 1
    return bits >> 32, bits & 0xFFFFFFFF


def write_arguments(writes: Sequence[Write], now_us: int) -> list[bytes | int]:
    """Return number of keys, keys and arguments of SET_NEWEST."""
    now_ms = max(now_us // 1000, 0)
    arguments: list[bytes | int] = [len(writes), *[write.key for write in writes]]
    for _, record, expiry_ms in writes:
        arguments.append(record)
        arguments.append(_expiry(expiry_ms, now_ms))
    return arguments


def repair_arguments(repairs: Sequence[Repair], now_us: int) -> list[bytes | int]:
    """Return number of keys, keys and arguments of REPAIR."""
    now_ms = max(now_us // 1000, 0)
    arguments: list[bytes | int] = [len(repairs), *[repair.key for repair in repairs]]
    for repair in repairs:
        new = repair.replacement
        arguments.append(repair.version)
        arguments.append(b"" if new is None else new.record)
        arguments.append(NEVER if new is None else _expiry(new.expire_at_ms, now_ms))
    return arguments


def _expiry(expiry_ms: int | None, now_ms: int) -> bytes | int:
    if expiry_ms is None:
        return NEVER
    return expiry_ms if expiry_ms > now_ms else EXPIRED
