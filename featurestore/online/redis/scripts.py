"""The scripts that run inside Redis: compare-and-set, and repair. Each call is atomic and returns one number per key.

Versions are compared as four unsigned 32-bit words: a Lua number holds no 64-bit integer, and ``<`` on strings
follows the server's locale. Keys and records are sent unchanged; nothing here depends on a record's content after its
header.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.online.interface import Repair, Write
from featurestore.online.records.codec import FORMAT_VERSION, SMALLEST_RECORD_BYTES

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
