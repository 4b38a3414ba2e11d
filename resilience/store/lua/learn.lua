-- What a circuit learns from a call's end (circuit.lua): it counts, opens, and closes again.
--
-- ARGV   marks for each circuit: (era + 1) · 16 + told · 4 + 2 if the call was slow + 1 if it held a permit;
--        era -1 is a call that did not ask before; told is 0 where the call's kind holds for the circuit, 1 where
--        it has failed, 2 where it says nothing: its error speaks of something else

local function open(c, reason, call, changes)
  local recovering = c.state == "half_open" or slowdown(c) > 1
  local grown = recovering and c.open > 0 and math.floor(c.open * policy(c).growth) or policy(c).open
  c.open = math.min(grown, policy(c).open_max)
  turn(c, "open", now + math.max(c.open, call.retry_after), reason, changes)
end

-- A 429 that names a wait is the limiter's business, unless they go on after the wait was over.
local function throttled_for_long(c, call)
  local kept = redis.call("HMGET", c.key, "throttles", "quiet")
  if policy(c).throttles == 0 or call.started < (tonumber(kept[2]) or 0) then return false end
  local throttles = (tonumber(kept[1]) or 0) + 1
  redis.call("HSET", c.key, "throttles", throttles, "quiet", now + math.max(call.retry_after, GATE_LEAST_US))
  if c.state == "closed" then keep(c.key) end
  return throttles >= policy(c).throttles
end

-- Whether the call failed; nil where it says nothing about the service.
local function has_failed(c, call, kind)
  if kind == "success" then return false end
  if kind == "failure" then return true end
  if kind ~= "throttled" then return nil end
  if call.retry_after < 0 or policy(c).throttles_fail == 1 or throttled_for_long(c, call) then return true end
end

-- Count a call; slices are reused in a ring.
local function count(c, failed, slow)
  local tick = math.floor(now / c.slice)
  local own = "s" .. tick % SLICES
  local kept = redis.call("HMGET", c.key, own, "succeeded", "failed", "throttles")
  local t, calls, failures, slows = string.match(kept[1] or "", "(%d+):(%d+):(%d+):(%d+)")
  if tonumber(t) ~= tick then calls, failures, slows = 0, 0, 0 end
  local slice = string.format("%.0f:%.0f:%.0f:%.0f", tick, calls + 1, failures + (failed and 1 or 0),
    slows + (slow and 1 or 0))
  if failed then
    redis.call("HSET", c.key, own, slice, "failures", c.failures, "failed", (kept[3] or 0) + 1, "failed_at", now)
  elseif kept[4] and kept[4] ~= "0" then
    redis.call("HSET", c.key, own, slice, "failures", c.failures, "succeeded", (kept[2] or 0) + 1, "throttles", 0)
  else
    redis.call("HSET", c.key, own, slice, "failures", c.failures, "succeeded", (kept[2] or 0) + 1)
  end
  if c.state == "closed" then keep(c.key) end
end

local function learn_from_call(c, call, failed, slow, changes)
  if not (failed or slow) then return end
  local p, calls, failures, slows = policy(c), window(c)
  if failed and p.failures > 0 and c.failures >= p.failures then
    return open(c, "consecutive failures", call, changes)
  end
  if calls < p.min_calls then return end
  if failed and p.rate > 0 and failures >= p.rate * calls then return open(c, "failure rate", call, changes) end
  if slow and p.slow_rate > 0 and slows >= p.slow_rate * calls then open(c, "slow calls", call, changes) end
end

local function learn_from_probe(c, call, bad, changes)
  local p = policy(c)
  if bad then
    c.bad = c.bad + 1
    if p.strict == 1 or p.probes - c.bad < p.successes then
      redis.call("HINCRBY", c.key, "relapsed", 1)
      return open(c, "probes failed", call, changes)
    end
  else
    c.good = c.good + 1
    if c.good >= p.successes then
      redis.call("HINCRBY", c.key, "recovered", 1)
      c.failures, c.closed = 0, now
      return turn(c, "closed", 0, "probes succeeded", changes)
    end
  end
  redis.call("HSET", c.key, "good", c.good, "bad", c.bad)
end

-- A call of an earlier era, or one whose permit has run out, is counted but says nothing about this one.
local function is_current(c, id, era, permit)
  if permit then
    local lent_till = tonumber(redis.call("ZSCORE", c.permits, id)) or 0
    redis.call("ZREM", c.permits, id)
    return lent_till > now and era == c.era
  end
  if era >= 0 then return era == c.era end
  return c.state ~= "half_open" or free_permits(c) > 0
end

local TOLD = {"failure", "ignored"}

local function learn(c, call, marks, changes)
  local era, permit, slow = math.floor(marks / 16) - 1, marks % 2 == 1, marks % 4 > 1
  local kind = TOLD[math.floor(marks / 4) % 4] or call.kind
  local current = is_current(c, call.id, era, permit)
  if kind == "throttled" and not current then return end
  local failed = has_failed(c, call, kind)
  if failed == nil then return end
  if not current then
    if not c.missing then redis.call("HINCRBY", c.key, failed and "failed" or "succeeded", 1) end
    return
  end
  if failed then c.failures = c.failures + 1 elseif c.state ~= "half_open" then c.failures = 0 end
  count(c, failed, slow)
  if c.state == "half_open" then return learn_from_probe(c, call, failed or slow, changes) end
  if c.state == "closed" then learn_from_call(c, call, failed, slow, changes) end
end
