-- A circuit (layout.py); `turn` is the only way from one state to another.
--
-- KEYS      circuit; permits, a sorted set: id of a probing call, end of its permit in µs
-- numbers   slice_us, and the policy, read only when it matters: failures, rate, min_calls, open_us, growth,
--           open_max_us, probes, successes, lease_us, step_us, slow_rate, throttles, throttles_fail, strict
--
-- A script that turns circuits sets `events`, the stream that each transition is written to.

local events

-- A circuit of which nobody has decided anything is missing, though calls may have been counted.
local function read_circuit(index)
  local c = load_circuit(key())
  c.index, c.permits, c.missing, c.terms_at = index, key(), c.known == 0, at + 8
  c.slice = struct.unpack("<d", figures, at)
  at = at + 15 * 8
  return c
end

local function policy(c)
  if not c.policy then
    local p = {}
    p.failures, p.rate, p.min_calls, p.open, p.growth, p.open_max, p.probes, p.successes, p.lease, p.step,
      p.slow_rate, p.throttles, p.throttles_fail, p.strict = struct.unpack("<dddddddddddddd", figures, c.terms_at)
    c.policy = p
  end
  return c.policy
end

-- A state that was set to last keeps its end.
local function keep_circuit(c)
  if c.state ~= CLOSED then return save_circuit(c) end
  c.kept = now
  save_circuit(c, DAY_MS + RENEW_MS)
end

-- Successes of the slices that the ring holds.
local function successes(c)
  local sum = 0
  for i = 0, SLICES - 1 do
    local _, calls, failures = struct.unpack("<ddd", c.ring, 32 * i + 1)
    sum = sum + calls - failures
  end
  return sum
end

-- How long the circuit has been open, if it is; its time may have been over before anybody asked.
local function open_time(c)
  if c.state ~= OPEN and c.state ~= FORCED_OPEN then return 0 end
  return math.max(0, (c.till > 0 and math.min(c.till, now) or now) - c.changed)
end

local function tell(c, state, reason, changes)
  for _, part in ipairs({c.index, c.state, state, reason}) do changes[#changes + 1] = part end
  if c.state == state then return end
  local names = STATE_NAMES
  redis.call("XADD", events, "MAXLEN", "~", EVENTS_KEPT, "*", "circuit", string.match(c.key, ":circuit:(.*)$"),
    "old", names[c.state + 1], "new", names[state + 1], "reason", reason, "at", string.format("%.0f", now),
    "actor", actor)
  keep(events)
end

local function turn(c, state, till, reason, changes)
  tell(c, state, reason, changes)
  c.open_time = c.open_time + open_time(c)
  if c.state ~= state and (state == OPEN or state == FORCED_OPEN) then
    c.opens, c.opened = c.opens + 1, now
  elseif state == CLOSED then
    c.succeeded, c.ring = c.succeeded + successes(c), string.rep("\0", #c.ring)
  end
  c.state, c.known, c.era, c.till, c.good, c.bad, c.throttles = state, 1, c.era + 1, till, 0, 0, 0
  c.changed, c.kept, c.missing = now, now, false
  redis.call("DEL", c.permits)
  local forced = state == FORCED_OPEN or state == DISABLED
  local lasts = till > 0 and (till - now) / 1000 + DAY_MS or forced and FORCED_MS or 0
  save_circuit(c, math.max(DAY_MS, math.ceil(lasts)) + RENEW_MS)
end

local function wake(c, changes)
  if c.till == 0 or now < c.till then return end
  if c.state == OPEN then return turn(c, HALF_OPEN, 0, "open time over", changes) end
  c.failures, c.open, c.closed = 0, 0, 0
  turn(c, CLOSED, 0, "override over", changes)
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
  for i = 0, SLICES - 1 do
    local tick, n, f, s = struct.unpack("<dddd", c.ring, 32 * i + 1)
    if tick > newest - SLICES then calls, failures, slow = calls + n, failures + f, slow + s end
  end
  return calls, failures, slow
end
