-- What a circuit learns from a call's end (circuit.lua): it counts, opens, and closes again.
--
-- numbers   marks for each circuit: (era + 1) · 16 + told · 4 + 2 if the call was slow + 1 if it held a permit;
--           era -1 is a call that did not ask before; told is 0 where the call's kind holds for the circuit, 1
--           where it has failed, 2 where it says nothing: its error speaks of something else

local function open(c, reason, call, changes)
  local recovering = c.state == HALF_OPEN or slowdown(c) > 1
  local grown = recovering and c.open > 0 and math.floor(c.open * policy(c).growth) or policy(c).open
  c.open = math.min(grown, policy(c).open_max)
  turn(c, OPEN, now + math.max(c.open, call.retry_after), reason, changes)
end

-- A 429 that names a wait is the limiter's business, unless they go on after the wait was over.
local function throttled_for_long(c, call)
  if policy(c).throttles == 0 or call.started < c.quiet then return false end
  c.throttles, c.quiet = c.throttles + 1, now + math.max(call.retry_after, GATE_LEAST_US)
  keep_circuit(c)
  return c.throttles >= policy(c).throttles
end

-- Whether the call failed; nil where it says nothing about the service.
local function has_failed(c, call, kind)
  if kind == SUCCESS then return false end
  if kind == FAILURE then return true end
  if kind ~= THROTTLED then return nil end
  if call.retry_after < 0 or policy(c).throttles_fail == 1 or throttled_for_long(c, call) then return true end
end

-- Count a call; slices are reused in a ring.
local function count(c, failed, slow)
  if failed then c.failed, c.failed_at = c.failed + 1, now else c.throttles = 0 end
  local tick = math.floor(now / c.slice)
  local own = tick % SLICES * 32
  local kept, calls, failures, slows = struct.unpack("<dddd", c.ring, own + 1)
  if kept ~= tick then
    c.succeeded = c.succeeded + calls - failures
    calls, failures, slows = 0, 0, 0
  end
  c.ring = string.sub(c.ring, 1, own)
    .. struct.pack("<dddd", tick, calls + 1, failures + (failed and 1 or 0), slows + (slow and 1 or 0))
    .. string.sub(c.ring, own + 33)
end

local function learn_from_call(c, call, failed, slow, changes)
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
      c.relapsed = c.relapsed + 1
      open(c, "probes failed", call, changes)
    end
  else
    c.good = c.good + 1
    if c.good >= p.successes then
      c.recovered, c.failures, c.closed = c.recovered + 1, 0, now
      turn(c, CLOSED, 0, "probes succeeded", changes)
    end
  end
end

-- A call of an earlier era, or one whose permit has run out, is counted but says nothing about this one.
local function is_current(c, id, era, permit)
  if permit then
    local lent_till = tonumber(redis.call("ZSCORE", c.permits, id)) or 0
    redis.call("ZREM", c.permits, id)
    return lent_till > now and era == c.era
  end
  if era >= 0 then return era == c.era end
  return c.state ~= HALF_OPEN or free_permits(c) > 0
end

local function learn(c, call, marks, changes)
  local era, permit, slow = math.floor(marks / 16) - 1, marks % 2 == 1, marks % 4 > 1
  local told, kind = math.floor(marks / 4) % 4, call.kind
  if told > 0 then kind = told == 1 and FAILURE or IGNORED end
  local current, before = is_current(c, call.id, era, permit), c.era
  if kind == THROTTLED and not current then return end
  local failed = has_failed(c, call, kind)
  if failed == nil then return end
  if not current then
    if c.missing then return end
    if failed then c.failed = c.failed + 1 else c.succeeded = c.succeeded + 1 end
    return keep_circuit(c)
  end
  if failed then c.failures = c.failures + 1 elseif c.state ~= HALF_OPEN then c.failures = 0 end
  count(c, failed, slow)
  if c.state == HALF_OPEN then
    learn_from_probe(c, call, failed or slow, changes)
  elseif c.state == CLOSED and (failed or slow) then
    learn_from_call(c, call, failed, slow, changes)
  end
  if c.era == before then keep_circuit(c) end -- else it was turned, and kept
end
