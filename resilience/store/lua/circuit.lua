-- A circuit: its hash is read into a table; `turn` is the only way from one state to another.
--
-- KEYS   circuit   hash: state, era, failures, until, open, closed, good, bad, s0 … s9 (tick:calls:failures)
--        permits   sorted set: id of a probing call, end of its permit in µs
-- ARGV   slice_us (0: no failure rate); the policy as one string of numbers, read only when it matters:
--        failures rate min_calls open_us growth open_max_us probes successes lease_us step_us

local FIELDS = {"state", "era", "failures", "until", "open", "closed", "good", "bad"}
local RING = {"s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"}
local TERMS = {"failures", "rate", "min_calls", "open", "growth", "open_max", "probes", "successes", "lease",
  "step"}

local function read_circuit(index)
  local c = {index = index, key = key(), permits = key(), slice = number(), terms = text()}
  local kept = redis.call("HMGET", c.key, unpack(FIELDS))
  c.state = kept[1] or "closed"
  for i = 2, #FIELDS do c[FIELDS[i]] = tonumber(kept[i]) or 0 end
  return c
end

local function policy(c)
  if c.policy then return c.policy end
  local at = 0
  c.policy = {}
  for term in string.gmatch(c.terms, "%S+") do
    at = at + 1
    c.policy[TERMS[at]] = tonumber(term)
  end
  return c.policy
end

local function turn(c, state, reason, changes)
  for _, change in ipairs({c.index, c.state, state, reason}) do changes[#changes + 1] = change end
  c.state, c.era, c.good, c.bad = state, c.era + 1, 0, 0
  redis.call("DEL", c.permits)
  redis.call("HDEL", c.key, unpack(RING))
  redis.call("HSET", c.key, "state", c.state, "era", c.era, "failures", c.failures, "until", c["until"],
    "open", c.open, "closed", c.closed, "good", 0, "bad", 0)
  keep(c.key, math.max(DAY_MS, math.ceil((c["until"] - now) / 1000) + DAY_MS))
end

local function wake(c, changes)
  if c["until"] == 0 or now < c["until"] then return end
  c["until"] = 0
  if c.state == "open" then return turn(c, "half_open", "open time over", changes) end
  c.failures, c.open, c.closed = 0, 0, 0
  turn(c, "closed", "override over", changes)
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
