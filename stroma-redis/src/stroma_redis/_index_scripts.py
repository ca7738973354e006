"""The Lua scripts that look after the two indexes of runs; see `_scripts`."""

from __future__ import annotations

from typing import Final

from stroma_redis._lua import OUTLIVE, TIME, UNFINISHED_RUNS, script

LIST: Final = script(
    TIME,
    OUTLIVE,
    """
-- Lists a run by itself: where the indexes may be on another node, or lost an entry.
-- KEYS: both indexes. ARGV: run id, time to live in ms, lease in ms, whether it was updated now,
-- how it stands, number of others to sample. How it stands: 1 claimed, 2 owned, 0 not known.
-- When the run was created is not known here. An entry with the time of now is read before all
-- others, and put right; and it shows that a claim came after what somebody else has seen.
local index, unfinished, run_id, stands = KEYS[1], KEYS[2], ARGV[1], ARGV[5]
local now, keep_ms = seconds_now(), kept_for(ARGV[2], ARGV[3])
if ARGV[4] == '1' then
  redis.call('ZADD', index, in_micros(now), run_id)
else
  redis.call('ZADD', index, 'NX', in_micros(now), run_id)
end
if stands == '1' then
  redis.call('ZADD', unfinished, now, run_id)
elseif stands == '2' then
  redis.call('ZADD', unfinished, 'NX', now, run_id)
end
outlive(index, keep_ms)
outlive(unfinished, keep_ms)
local sampled = {}
if ARGV[6] ~= '0' then
  sampled = redis.call('ZRANDMEMBER', index, tonumber(ARGV[6]), 'WITHSCORES')
end
return {sampled, redis.call('ZSCORE', unfinished, run_id)}
""",
)

_SEEN: Final = """
local function is_as_seen(index, run_id, seen)
  local score = redis.call('ZSCORE', index, run_id)
  return score and tonumber(score) == tonumber(seen)
end
"""

HEAL: Final = script(
    _SEEN,
    """
-- KEYS: both indexes. ARGV: run id, score that was seen in the first, right score, or nothing if
-- the run has gone. An entry that was changed since it was seen is left alone.
if not is_as_seen(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
end
return 1
""",
)

SETTLE: Final = script(
    _SEEN,
    UNFINISHED_RUNS,
    """
-- The same for the index of unfinished runs. A second key is the run, which is looked at again:
-- it may have been claimed since, and have the same place.
if not is_as_seen(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
local right = ARGV[3]
if KEYS[2] then
  local run = redis.call('HMGET', KEYS[2], 'status', 'created_at')
  right = UNFINISHED[run[1]] and place(run[2]) or ''
end
if right == '' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], right, ARGV[1])
end
return 1
""",
)
