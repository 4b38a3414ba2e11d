-- What a circuit learns from a call's end (circuit.lua): it counts, opens, and closes again.

local function open(c, reason, changes)
  local recovering = c.state == "half_open" or slowdown(c) > 1
  local grown = recovering and c.open > 0 and math.floor(c.open * policy(c).growth) or policy(c).open
  c.open = math.min(grown, policy(c).open_max)
  c["until"] = now + c.open
  turn(c, "open", reason, changes)
end

-- Count a call; after a failure, say how many the window holds. Slices are reused in a ring.
local function count(c, failed)
  local tick = math.floor(now / c.slice)
  local own = RING[tick % #RING + 1]
  local kept, calls, failures = redis.call("HGET", c.key, own) or "", 1, failed and 1 or 0
  local t, n, f = string.match(kept, "(%d+):(%d+):(%d+)")
  if tonumber(t) == tick then calls, failures = calls + n, failures + f end
  redis.call("HSET", c.key, own, string.format("%.0f:%.0f:%.0f", tick, calls, failures))
  keep(c.key)
  if not failed then return 0, 0 end
  calls, failures = 0, 0
  for _, slice in ipairs(redis.call("HMGET", c.key, unpack(RING))) do
    t, n, f = string.match(slice or "", "(%d+):(%d+):(%d+)")
    if t and tonumber(t) > tick - #RING then calls, failures = calls + n, failures + f end
  end
  return calls, failures
end

local function learn_from_call(c, failed, changes)
  local before = c.failures
  c.failures = failed and before + 1 or 0
  if c.failures ~= before then
    redis.call("HSET", c.key, "failures", c.failures)
    keep(c.key)
  end
  local calls, failures = 0, 0
  if c.slice > 0 then calls, failures = count(c, failed) end
  if not failed then return end
  if policy(c).failures > 0 and c.failures >= policy(c).failures then
    return open(c, "consecutive failures", changes)
  end
  if c.slice > 0 and calls >= policy(c).min_calls and failures >= policy(c).rate * calls then
    open(c, "failure rate", changes)
  end
end

local function learn_from_probe(c, failed, changes)
  if failed then
    c.bad, c.failures = c.bad + 1, c.failures + 1
    if policy(c).probes - c.bad < policy(c).successes then return open(c, "probes failed", changes) end
  else
    c.good = c.good + 1
    if c.good >= policy(c).successes then
      c.failures, c["until"], c.closed = 0, 0, now
      return turn(c, "closed", "probes succeeded", changes)
    end
  end
  redis.call("HSET", c.key, "good", c.good, "bad", c.bad, "failures", c.failures)
end

-- A call of an earlier era, or one whose permit has run out, says nothing about this one.
local function learn(c, id, kind, era, permit, changes)
  if permit then
    local lent_till = tonumber(redis.call("ZSCORE", c.permits, id)) or 0
    redis.call("ZREM", c.permits, id)
    if lent_till <= now then return end
  end
  if era ~= c.era or (kind ~= "success" and kind ~= "failure") then return end
  if c.state == "half_open" then return learn_from_probe(c, kind == "failure", changes) end
  if c.state == "closed" then learn_from_call(c, kind == "failure", changes) end
end
