"""What the Lua scripts are made of."""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from stroma.records import CLAIMABLE as UNFINISHED

MARGIN_MS: Final = 60_000
"""A run outlives the lease of its owner by this, however short its time to live is."""

LONGEST_MS: Final = 10**13
"""Nothing is kept for longer, some 300 years: what Lua writes with more digits is no integer."""

SLACK: Final = 1 / 16
"""The share of its time to live for which the life of an owned run is not prolonged again."""


class Script(NamedTuple):
    """A script and the digest that it is called by.

    Attributes:
        source: in Lua 5.1.
        sha: SHA-1 of the source, in hex.
    """

    source: bytes
    sha: bytes


def script(*parts: str) -> Script:
    """Return the script that consists of these parts."""
    source = "".join(parts).encode()
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


TIME: Final = f"""
local function seconds_now()
  local time = redis.call('TIME')
  return string.format('%s.%06d', time[1], time[2])
end
local function in_micros(now)
  return (string.gsub(now, '%.', ''))
end
local function later(now, ms)
  return string.format('%.6f', tonumber(now) + ms / 1000)
end
local function kept_for(ttl_ms, lease_ms)
  local kept_ms = math.ceil(math.max(ttl_ms * {1 + SLACK}, lease_ms + {MARGIN_MS}))
  if kept_ms > {LONGEST_MS} then error('a lease of ' .. lease_ms .. ' ms is too long') end
  return kept_ms
end
"""

UNFINISHED_RUNS: Final = f"""
local UNFINISHED = {{{", ".join(f"{status.value} = true" for status in UNFINISHED)}}}
local function place(created_at)
  return string.format('%.17g', -tonumber(created_at))
end
"""

OUTLIVE: Final = """
local function outlive(index, keep_ms)
  -- Half as long again as the run, and a quarter of its time to live may pass before the next.
  if redis.call('PTTL', index) < keep_ms * 1.5 then
    redis.call('PEXPIRE', index, string.format('%d', keep_ms * 2))
  end
end
"""

LISTING: Final = f"""
{UNFINISHED_RUNS}
{OUTLIVE}
local function list(run_id, status, created_at, now, keep_ms, is_claim)
  local index, unfinished = KEYS[2], KEYS[3]
  if not index then return end
  -- A claim looks after the lives of the indexes. Later, an entry that is there still shows that
  -- they are, too; a run that lasts is listed again by `LIST`, before they end.
  if redis.call('ZADD', index, in_micros(now), run_id) == 1 or is_claim then
    outlive(index, keep_ms)
  end
  if UNFINISHED[status] then
    if redis.call('ZADD', unfinished, place(created_at), run_id) == 1 or is_claim then
      outlive(unfinished, keep_ms)
    end
  else
    redis.call('ZREM', unfinished, run_id)
  end
end
"""
