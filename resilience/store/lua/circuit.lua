-- A circuit: its hash is read into a table; `turn` is the only way from one state to another.
--
-- KEYS   circuit   hash: state, era, failures, until, open, closed, good, bad, throttles, quiet;
--                  s0 … s9 (tick:calls:failures:slow); and for people: succeeded, failed, opens, recovered,
--                  relapsed, open_time, opened, failed_at, changed
--        permits   sorted set: id of a probing call, end of its permit in µs
-- ARGV   slice_us; the policy as one string of numbers, read only when it matters:
--        failures rate min_calls open_us growth open_max_us probes successes lease_us step_us slow_rate
--        throttles throttles_fail strict
--
-- A script that turns circuits sets `events`, the stream that each transition is written to.

local FIELDS = {"state", "era", "failures", "until", "open", "closed", "good", "bad"}
local SLICES = 10

local events

-- Made where they are needed: most calls need none of them.
local function ring()
  return "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"
end

local function terms()
  return {"failures", "rate", "min_calls", "open", "growth", "open_max", "probes", "successes", "lease", "step",
    "slow_rate", "throttles", "throttles_fail", "strict"}
end

local function read_circuit(index)
  local c = {index = index, key = key(), permits = key(), slice = number(), terms = text()}
  local kept = redis.call("HMGET", c.key, unpack(FIELDS))
  c.missing, c.state = not kept[1], kept[1] or "closed"
  for i = 2, #FIELDS do c[FIELDS[i]] = tonumber(kept[i]) or 0 end
  return c
end

local function policy(c)
  if c.policy then return c.policy end
  local at, names = 0, terms()
  c.policy = {}
  for term in string.gmatch(c.terms, "%S+") do
    at = at + 1
    c.policy[names[at]] = tonumber(term)
  end
  return c.policy
end

-- How long the circuit has been open, if it is; its time may have been over before anybody asked.
local function open_time(c)
  if c.state ~= "open" and c.state ~= "forced_open" then return 0 end
  local till = c["until"] > 0 and math.min(c["until"], now) or now
  return math.max(0, till - (tonumber(redis.call("HGET", c.key, "changed")) or till))
end

local function tell(c, state, reason, changes)
  for _, part in ipairs({c.index, c.state, state, reason}) do changes[#changes + 1] = part end
  if c.state == state then return end
  redis.call("XADD", events, "MAXLEN", "~", EVENTS_KEPT, "*", "circuit", string.match(c.key, ":circuit:(.*)$"),
    "old", c.state, "new", state, "reason", reason, "at", string.format("%.0f", now), "actor", actor)
  keep(events)
end

local function turn(c, state, till, reason, changes)
  tell(c, state, reason, changes)
  redis.call("HINCRBY", c.key, "open_time", open_time(c))
  if c.state ~= state and (state == "open" or state == "forced_open") then
    redis.call("HINCRBY", c.key, "opens", 1)
    redis.call("HSET", c.key, "opened", now)
  elseif state == "closed" then
    redis.call("HDEL", c.key, ring())
  end
  c.state, c.era, c["until"], c.good, c.bad = state, c.era + 1, till, 0, 0
  redis.call("DEL", c.permits)
  redis.call("HSET", c.key, "state", c.state, "era", c.era, "failures", c.failures, "until", c["until"],
    "open", c.open, "closed", c.closed, "good", 0, "bad", 0, "throttles", 0, "changed", now)
  local forced = state == "forced_open" or state == "disabled"
  local lasts = till > 0 and (till - now) / 1000 + DAY_MS or forced and FORCED_MS or 0
  keep(c.key, math.max(DAY_MS, math.ceil(lasts)))
end

local function wake(c, changes)
  if c["until"] == 0 or now < c["until"] then return end
  if c.state == "open" then return turn(c, "half_open", 0, "open time over", changes) end
  c.failures, c.open, c.closed = 0, 0, 0
  turn(c, "closed", 0, "override over", changes)
end

local function free_permits(c)
  local lent = redis.call("ZCOUNT", c.permits, "(" .. string.format("%.0f", now), "+inf")
  return math.max(0, policy(c).probes - lent - c.good - c.bad)
end

local function slowdown(c)
  if c.closed == 0 then return 1 end
  local since = now - c.closed
  if since < policy(c).step then return 4 end
  return since < 2 * policy(c).step and 2 or 1
end

-- Calls, failures and slow calls of the window.
local function window(c)
  local newest, calls, failures, slow = math.floor(now / c.slice), 0, 0, 0
  for _, slice in ipairs(redis.call("HMGET", c.key, ring())) do
    local tick, n, f, s = string.match(slice or "", "(%d+):(%d+):(%d+):(%d+)")
    if tick and tonumber(tick) > newest - SLICES then calls, failures, slow = calls + n, failures + f, slow + s end
  end
  return calls, failures, slow
end
