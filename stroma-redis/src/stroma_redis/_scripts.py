"""The Lua scripts: what has to be one step of the server.

A run is one hash. Its columns are fields under their own names, "h:<record>" is the header of a
record and "p:<record>" its payload, with the record's name from `_keys`. A header is stored as
"<order> <rank> <length of the commit id> <commit id><JSON>": "written" counts the order, the rank
is highest for the last result and "-" for what can never be that. "keep_ms" says how long the run
is kept: long enough for its owner's lease, and while it is owned, a sixteenth longer than asked
for. So a commit that comes soon after another write need not prolong the run's life. Times are
seconds since the epoch on the server's clock, with six decimals.

Two indexes, of sorted sets, say where to look: "index" has every run, by the time of its last
update in microseconds; "unfinished" has those that are PENDING or RUNNING, by the time when they
were created with a minus before it, so that both are read from the top. The scripts that change a
run keep both, except in a cluster, where they are on other nodes.

Scripts are called with all keys declared, read before they write, and refuse before they write:
a server that is full or read-only refuses the first write, and so leaves nothing half done.
"""

from __future__ import annotations

from typing import Final

from stroma_redis._index_scripts import HEAL, LIST, SETTLE
from stroma_redis._lua import LISTING, TIME, UNFINISHED_RUNS, script

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

_COMMIT_ID: Final = """
local function commit_id(header, pattern)
  local _, at, length = string.find(header, pattern or '^%d+ %S+ (%d+) ')
  return string.sub(header, at + 1, at + length)
end
local WITHOUT_ORDER = '^%S+ (%d+) '
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
  local record, top = {{}}, -1
  for at, header in ipairs(headers) do
    local rank = tonumber(string.match(header, '^%d+ (%d+) '))
    if rank and rank > top then
      top = rank
      record = {{header, string.sub(names[at], 3)}}
    end
  end
  if record[2] then record[2] = redis.call('HGET', key, 'p:' .. record[2]) end
  local columns = redis.call('HMGET', key, {", ".join(f"'{name}'" for name in COLUMNS)})
  return columns, headers, record
end
"""

OPEN: Final = script(
    TIME,
    LISTING,
    """
-- ARGV: token, holder, lease in ms, time to live in ms, reopen, create, run id, when it was
-- created or nothing, then columns to create. More keys are the indexes that list the run.
local key, token, holder = KEYS[1], ARGV[1], ARGV[2]
local run = redis.call('HMGET', key, 'status', 'owner', 'lease_expires_at', 'holder', 'created_at')
local status = run[1]
local now = seconds_now()
local lease, keep_ms = later(now, tonumber(ARGV[3])), kept_for(ARGV[4], ARGV[3])
if not status then
  if ARGV[6] == '0' then return {'missing'} end
  local created_at = ARGV[8] ~= '' and ARGV[8] or now
  redis.call('HSET', key, 'status', 'RUNNING', 'owner', token, 'holder', holder, 'keep_ms', keep_ms,
    'lease_expires_at', lease, 'created_at', created_at, 'updated_at', now, unpack(ARGV, 9))
  redis.call('PEXPIRE', key, keep_ms)
  list(ARGV[7], 'RUNNING', created_at, now, keep_ms, true)
  return now
end
""",
    _CONTENTS,
    """
if status == 'COMPLETED' and ARGV[5] == '0' then
  return {'read', status, contents(key)}
end
if run[2] ~= '' and run[2] ~= token and tonumber(run[3]) > tonumber(now) then
  return {'locked', run[4], run[3], now}
end
redis.call('HSET', key, 'status', 'RUNNING', 'owner', token, 'holder', holder, 'keep_ms', keep_ms,
  'lease_expires_at', lease, 'updated_at', now)
redis.call('PEXPIRE', key, keep_ms)
list(ARGV[7], 'RUNNING', run[5], now, keep_ms, true)
return {'claimed', status, contents(key)}
""",
)

INSPECT: Final = script(
    _CONTENTS,
    """
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'missing'} end
return {'read', status, contents(KEYS[1])}
""",
)

ADD: Final = script(
    f"""
-- One record of an owned run, and nothing else: most of all commits. Each command that a script
-- calls takes longer than a SET, so there are two where two are enough.
-- ARGV: token, name, header without its order, payload, and 1 to prolong the run's life
local key, token, name = KEYS[1], ARGV[1], ARGV[2]
local run = redis.call('HMGET', key, 'owner', 'written', 'h:' .. name)
if run[1] ~= token then
  return {{'stale', run[1] and redis.call('HGET', key, 'holder')}}
end
if not run[3] then
  local order = (run[2] or 0) + 1
  redis.call('HSET', key, 'h:' .. name, order .. ' ' .. ARGV[3], 'p:' .. name, ARGV[4],
    'written', order)
else
{_COMMIT_ID}
  if commit_id(run[3]) ~= commit_id(ARGV[3], WITHOUT_ORDER) then return {{'taken', name}} end
end
if ARGV[5] then redis.call('PEXPIRE', key, redis.call('HGET', key, 'keep_ms')) end
return 1
"""
)

COMMIT: Final = script(
    TIME,
    LISTING,
    _COMMIT_ID,
    """
-- ARGV: token, time to live in ms, change, new status or nothing, run id, number of records, for
-- each of them name, header without its order, payload, then columns to change. Change: 0 none, 1
-- some, 2 and a release. Without a token, records replace earlier ones, and no run need exist.
-- More keys are the indexes that list the run.
local key, token, change, last_arg = KEYS[1], ARGV[1], ARGV[3], 6 + ARGV[6] * 3
-- One more command takes longer than one more field, so the first record is looked for at once.
local run = redis.call('HMGET', key, 'owner', 'keep_ms', 'written', 'status', 'created_at',
  'h:' .. (ARGV[7] or ''))
local owner, keep_ms, written = run[1], run[2] or ARGV[2], run[3] or 0
if token ~= '' and owner ~= token then
  return {'stale', owner and redis.call('HGET', key, 'holder')}
end
local fields, ids = {}, {}
local function set(name, value)
  local count = #fields
  fields[count + 1], fields[count + 2] = name, value
end
for at = 7, last_arg, 3 do
  local name, is_new = ARGV[at], true
  if token ~= '' then
    local id, kept = commit_id(ARGV[at + 1], WITHOUT_ORDER), ids[name]
    if not kept then
      local stored = run[6]
      if at > 7 then stored = redis.call('HGET', key, 'h:' .. name) end
      kept = stored and commit_id(stored)
    end
    if kept and kept ~= id then return {'taken', name} end
    is_new = not kept
    ids[name] = id
  end
  if is_new then
    written = written + 1
    set('h:' .. name, written .. ' ' .. ARGV[at + 1])
    set('p:' .. name, ARGV[at + 2])
  end
end
if #fields > 0 then
  set('written', written)
elseif token == '' then
  return 1
end
local now = token ~= '' and change ~= '0' and seconds_now()
if now then
  set('updated_at', now)
  for at = last_arg + 1, #ARGV, 2 do set(ARGV[at], ARGV[at + 1]) end
  if change == '2' then
    keep_ms = ARGV[2]
    set('owner', '')
    set('holder', '')
    set('lease_expires_at', '0')
    set('keep_ms', keep_ms)
  end
end
for first = 1, #fields, 2000 do
  redis.call('HSET', key, unpack(fields, first, math.min(first + 1999, #fields)))
end
if now then
  list(ARGV[5], ARGV[4] ~= '' and ARGV[4] or run[4], run[5], now, keep_ms)
end
redis.call('PEXPIRE', key, keep_ms)
return 1
""",
)

RENEW: Final = script(
    TIME,
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

RELEASE: Final = script(
    TIME,
    LISTING,
    """
-- ARGV: token, time to live in ms, run id. More keys are the indexes that list the run.
local run = redis.call('HMGET', KEYS[1], 'owner', 'status', 'created_at')
if not run[1] or run[1] == '' or run[1] ~= ARGV[1] then return 0 end
local now = seconds_now()
redis.call('HSET', KEYS[1], 'owner', '', 'holder', '', 'lease_expires_at', '0', 'updated_at', now,
  'keep_ms', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
list(ARGV[3], run[2], run[3], now, ARGV[2])
return 1
""",
)

FETCH: Final = script(
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

PURGE: Final = script(
    TIME,
    """
local run = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease_expires_at')
if not run[1] then return 0 end
if run[2] ~= '' and tonumber(run[3]) > tonumber(seconds_now()) then return 0 end
return redis.call('UNLINK', KEYS[1])
""",
)

CLAIMABLE: Final = script(
    TIME,
    UNFINISHED_RUNS,
    f"""
-- ARGV: names of pipelines; none is any. Returns the columns of a run that a worker may take up,
-- when it was created if that may not be now or is not asked for, and nothing of one that ended.
local run = redis.call('HMGET', KEYS[1], 'status', 'owner', 'lease_expires_at', 'created_at',
  'pipeline')
if not UNFINISHED[run[1]] then return false end
local is_asked_for = #ARGV == 0
for _, pipeline in ipairs(ARGV) do
  if pipeline == run[5] then is_asked_for = true end
end
if not is_asked_for then return run[4] end
local ends = tonumber(run[3])  -- nil of a damaged one, which the caller tells
if run[2] ~= '' and ends and ends > tonumber(seconds_now()) then return run[4] end
return redis.call('HMGET', KEYS[1], {", ".join(f"'{name}'" for name in COLUMNS)})
""",
)

ALL: Final = (
    *(OPEN, INSPECT, ADD, COMMIT, RENEW, RELEASE, FETCH, PURGE),
    *(CLAIMABLE, LIST, HEAL, SETTLE),
)
OF_RUNS: Final = (OPEN, ADD, COMMIT, LIST)
"""What a clean run calls. A server that has forgotten one is sent it whole, in a trip more."""

BY_SHA: Final = {script.sha: script for script in ALL}
