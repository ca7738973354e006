"""The Lua scripts: what has to be one step of the server.

A run is one hash. Its columns are fields under their own names, "h:<record>" is the header of a
record and "p:<record>" its payload, with the record's name from `_keys`. A header is stored as
"<order> <length of the commit id> <commit id><JSON>". "written" counts records, "last" is the
rank and name of the last result, "keep_ms" how long the run is kept after each write: long enough
for its owner's lease. Times are seconds since the epoch on the server's clock, with six decimals.
Every script that writes sets the time to live of the whole run.

Scripts are called with all keys declared, read before they write, and refuse before they write:
a server that is full or read-only refuses the first write, and so leaves nothing half done.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

FORMAT: Final = 1
"""Version of this layout; a run that a later one wrote is refused."""

COLUMNS: Final = (
    "status",
    "stop_reason",
    "pipeline",
    "version",
    "tags",
    "owner",
    "holder",
    "lease_expires_at",
    "epochs",
    "input_payload",
    "input_fingerprint",
    "plan",
    "spend",
    "active_ms",
    "trace_parent",
    "created_at",
    "updated_at",
    "format",
)
"""Fields of a run record, in the order in which scripts return them."""

MARGIN_MS: Final = 60_000
"""A run outlives the lease of its owner by this, however short its time to live is."""


class Script(NamedTuple):
    """A script and the digest that it is called by.

    Attributes:
        source: in Lua 5.1.
        sha: SHA-1 of the source, in hex.
    """

    source: bytes
    sha: bytes


def _script(*parts: str) -> Script:
    source = "".join(parts).encode()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


_TIME: Final = f"""
local function seconds_now()
  local time = redis.call('TIME')
  return string.format('%s.%06d', time[1], time[2])
end
local function later(now, ms)
  return string.format('%.6f', tonumber(now) + ms / 1000)
end
local function kept_for(ttl_ms, lease_ms)
  return math.max(tonumber(ttl_ms), tonumber(lease_ms) + {MARGIN_MS})
end
"""

_CONTENTS: Final = f"""
local function contents(key)
  local names = {{}}
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 2) == 'h:' and string.sub(name, 3, 5) ~= '-1:' then
      names[#names + 1] = name
    end
  end
  local headers = {{}}
  for first = 1, #names, 1000 do
    local part = redis.call('HMGET', key, unpack(names, first, math.min(first + 999, #names)))
    for _, header in ipairs(part) do headers[#headers + 1] = header end
  end
  local last = redis.call('HGET', key, 'last')
  local record = {{}}
  if last then
    local name = string.match(last, '^%d+ (.*)$')
    record = redis.call('HMGET', key, 'h:' .. name, 'p:' .. name)
  end
  local columns = redis.call('HMGET', key, {", ".join(f"'{name}'" for name in COLUMNS)})
  return columns, headers, record
end
"""

OPEN: Final = _script(
    _TIME,
    _CONTENTS,
    """
-- ARGV: token, holder, lease in ms, time to live in ms, reopen, create, then columns to create
local key, token, holder = KEYS[1], ARGV[1], ARGV[2]
local run = redis.call('HMGET', key, 'status', 'owner', 'lease_expires_at', 'holder')
local status = run[1]
local now = seconds_now()
local lease, keep_ms = later(now, tonumber(ARGV[3])), kept_for(ARGV[4], ARGV[3])
if not status then
  if ARGV[6] == '0' then return {'missing'} end
  redis.call('HSET', key, 'status', 'RUNNING', 'owner', token, 'holder', holder, 'keep_ms', keep_ms,
    'lease_expires_at', lease, 'created_at', now, 'updated_at', now, unpack(ARGV, 7))
  redis.call('PEXPIRE', key, keep_ms)
  return {'created', now}
end
if status == 'COMPLETED' and ARGV[5] == '0' then
  return {'read', status, contents(key)}
end
if run[2] ~= '' and run[2] ~= token and tonumber(run[3]) > tonumber(now) then
  return {'locked', run[4], run[3], now}
end
redis.call('HSET', key, 'status', 'RUNNING', 'owner', token, 'holder', holder, 'keep_ms', keep_ms,
  'lease_expires_at', lease, 'updated_at', now)
redis.call('PEXPIRE', key, keep_ms)
return {'claimed', status, contents(key)}
""",
)

INSPECT: Final = _script(
    _CONTENTS,
    """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'missing'} end
return {'read', status, contents(KEYS[1])}
""",
)

COMMIT: Final = _script(
    _TIME,
    """
-- ARGV: token, lease in ms, time to live in ms, change, number of records, for each of them
-- name, commit id, rank, header, payload, then columns to change. Change: 0 none, 1 some, 2 and a
-- release. Without a token, records replace earlier ones, and no run need exist.
local key, token, lease_ms, change, last_arg = KEYS[1], ARGV[1], ARGV[2], ARGV[4], 5 + ARGV[5] * 5
local run
if last_arg == 10 then
  run = redis.call('HMGET', key, 'owner', 'last', 'written', 'keep_ms', 'h:' .. ARGV[6])
else
  run = redis.call('HMGET', key, 'owner', 'last', 'written', 'keep_ms')
end
local owner, last, written, keep_ms = run[1], run[2], run[3] or 0, tonumber(run[4] or ARGV[3])
if token ~= '' and owner ~= token then
  return {'stale', owner and redis.call('HGET', key, 'holder')}
end
local fields = {}
local ids = last_arg > 10 and {}
for at = 6, last_arg, 5 do
  local name, id, is_new = ARGV[at], ARGV[at + 1], true
  if token ~= '' then
    local kept = ids and ids[name]
    if not kept then
      local stored = run[5]
      if last_arg > 10 then stored = redis.call('HGET', key, 'h:' .. name) end
      if stored then
        local length, rest = string.match(stored, '^%d+ (%d+) (.*)$')
        kept = string.sub(rest, 1, length)
      end
    end
    if kept and kept ~= id then return {'taken', name} end
    is_new = not kept
    if ids then ids[name] = id end
  end
  if is_new then
    written = written + 1
    local count, rank = #fields, ARGV[at + 2]
    fields[count + 1] = 'h:' .. name
    fields[count + 2] = written .. ' ' .. #id .. ' ' .. id .. ARGV[at + 3]
    fields[count + 3] = 'p:' .. name
    fields[count + 4] = ARGV[at + 4]
    if rank ~= '' and (not last or tonumber(rank) > tonumber(string.match(last, '^%d+'))) then
      last = rank .. ' ' .. name
      fields[count + 5] = 'last'
      fields[count + 6] = last
    end
  end
end
if #fields > 0 then
  fields[#fields + 1] = 'written'
  fields[#fields + 1] = written
  for first = 1, #fields, 2000 do
    redis.call('HSET', key, unpack(fields, first, math.min(first + 1999, #fields)))
  end
elseif token == '' then
  return 1
end
if token ~= '' and (lease_ms ~= '0' or change ~= '0') then
  local now = seconds_now()
  if lease_ms ~= '0' then
    local lease = later(now, tonumber(lease_ms))
    if tonumber(lease) > tonumber(redis.call('HGET', key, 'lease_expires_at')) then
      keep_ms = math.max(keep_ms, kept_for(ARGV[3], lease_ms))
      redis.call('HSET', key, 'lease_expires_at', lease, 'keep_ms', keep_ms)
    end
  end
  if change ~= '0' then
    redis.call('HSET', key, 'updated_at', now, unpack(ARGV, last_arg + 1))
    if change == '2' then
      keep_ms = ARGV[3]
      redis.call('HSET', key, 'owner', '', 'holder', '', 'lease_expires_at', '0',
        'keep_ms', keep_ms)
    end
  end
end
redis.call('PEXPIRE', key, keep_ms)
return 1
""",
)

RENEW: Final = _script(
    _TIME,
    """
-- ARGV: token, lease in ms, time to live in ms
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner or owner == '' or owner ~= ARGV[1] then return 0 end
local now = seconds_now()
local lease = later(now, tonumber(ARGV[2]))
local keep_ms = kept_for(ARGV[3], ARGV[2])
redis.call('HSET', KEYS[1], 'lease_expires_at', lease, 'keep_ms', keep_ms)
redis.call('PEXPIRE', KEYS[1], keep_ms)
return 1
""",
)

RELEASE: Final = _script(
    _TIME,
    """
-- ARGV: token, time to live in ms
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner or owner == '' or owner ~= ARGV[1] then return 0 end
local now = seconds_now()
redis.call('HSET', KEYS[1], 'owner', '', 'holder', '', 'lease_expires_at', '0', 'updated_at', now,
  'keep_ms', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
""",
)

FETCH: Final = _script(
    """
-- ARGV: for each record its epoch and the rest of its name; no epoch asks for the plain record,
-- or else the newest
local key, names, found = KEYS[1], nil, {}
local function newest(rest)
  if redis.call('HEXISTS', key, 'h:-1:' .. rest) == 1 then return '-1' end
  names = names or redis.call('HKEYS', key)
  local top = nil
  for _, name in ipairs(names) do
    local epoch = string.match(name, '^h:(%d+):')
    if epoch and string.sub(name, #epoch + 4) == rest and (not top or tonumber(epoch) > top) then
      top = tonumber(epoch)
    end
  end
  return top and string.format('%d', top)
end
for at = 1, #ARGV, 2 do
  local epoch = ARGV[at]
  if epoch == '' then epoch = newest(ARGV[at + 1]) end
  local record = {false, false}
  if epoch then
    local name = epoch .. ':' .. ARGV[at + 1]
    record = redis.call('HMGET', key, 'h:' .. name, 'p:' .. name)
  end
  found[#found + 1] = record
end
return found
"""
)

PURGE: Final = _script(
    _TIME,
    """
local run = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease_expires_at')
if not run[1] then return 0 end
if run[2] ~= '' and tonumber(run[3]) > tonumber(seconds_now()) then return 0 end
return redis.call('UNLINK', KEYS[1])
""",
)

LIST: Final = _script(
    _TIME,
    """
-- ARGV: run id, time to live in ms, whether it was updated now, number of others to sample.
-- The index lives twice as long as the runs that it lists, and every writer prolongs it.
local key, ttl_ms = KEYS[1], tonumber(ARGV[2])
if ARGV[3] == '1' then
  redis.call('ZADD', key, seconds_now(), ARGV[1])
else
  redis.call('ZADD', key, 'NX', seconds_now(), ARGV[1])
end
if redis.call('PTTL', key) < ttl_ms then
  redis.call('PEXPIRE', key, string.format('%d', ttl_ms))
end
local sample = tonumber(ARGV[4])
if sample == 0 then return {} end
return redis.call('ZRANDMEMBER', key, sample, 'WITHSCORES')
""",
)

HEAL: Final = _script(
    """
-- ARGV: run id, score that was seen, right score or nothing. An entry that was changed since
-- it was seen is left alone.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then return redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
"""
)

ALL: Final = (OPEN, INSPECT, COMMIT, RENEW, RELEASE, FETCH, PURGE, LIST, HEAL)
BY_SHA: Final = {script.sha: script for script in ALL}
