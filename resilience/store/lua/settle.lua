-- settle(): what a call's end says; gives back what the call held.
--
-- KEYS      events; circuit and permits for each circuit; each gate (hash: closed, until, strikes); each sorted
--           set of seats; each bucket the server told something of
-- ARGV      id, kind, started_us, retry_after_us (-1: none named); number of circuits and each (circuit.lua);
--           marks for each (learn.lua); number of gates; number of sets of seats; number of buckets, and for
--           each: how far from now it is used up in µs, slack_us, ttl_ms
-- returns   {now, changes}; changes: index, old, new, reason, … flat

-- Close the gate on a 429. The calls that were in flight when it closed tell nothing new.
local function hear(gate, kind, started, retry_after)
  local throttled = kind == "throttled" or kind == "banned"
  if not throttled and kind ~= "success" then return end
  local kept = redis.call("HMGET", gate, "until", "strikes")
  local till, strikes = tonumber(kept[1]) or 0, tonumber(kept[2]) or 0
  local news = started >= till
  if not throttled then
    if news and strikes > 0 then redis.call("HSET", gate, "strikes", 0) end
    return
  end
  local asked = 0
  if retry_after >= 0 then
    asked = now + math.max(retry_after, GATE_LEAST_US)
  elseif news then
    asked = now + math.min(GATE_FIRST_US * 2 ^ strikes, GATE_MOST_US)
    strikes = math.min(strikes + 1, 10)
  end
  if asked > till then
    redis.call("HSET", gate, "closed", now, "until", asked, "strikes", strikes)
    keep(gate, math.ceil((asked - now) / 1000) + DAY_MS)
  end
end

-- Believe a server that says less is left than we think; never one that says more.
local function correct(bucket, used_up, slack, ttl_ms)
  local kept = redis.call("HMGET", bucket, "started", "booked")
  local started = tonumber(kept[1])
  if not started or used_up <= math.max(started, now) then return end
  redis.call("HSET", bucket, "started", used_up, "booked", math.max(tonumber(kept[2]), used_up - slack))
  keep(bucket, ttl_ms)
end

local function settle()
  events = key()
  local call = {id = text(), kind = text(), started = number(), retry_after = number()}
  local changes, circuits = {}, {}
  for i = 1, number() do circuits[i] = read_circuit(i - 1) end
  for _, c in ipairs(circuits) do learn(c, call, number(), changes) end
  for _ = 1, number() do hear(key(), call.kind, call.started, call.retry_after) end
  for _ = 1, number() do redis.call("ZREM", key(), call.id) end
  for _ = 1, number() do correct(key(), now + number(), number(), number()) end
  return {now, changes}
end
