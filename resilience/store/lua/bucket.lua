-- A rate limit: its hash is read into a table, with what the call needs of it.
--
-- KEYS   bucket    hash: booked, started, backfill, live, gate, all µs; calls, waited (µs); and its pace (pace.lua)
-- ARGV   index of its gate, cost_us, burst_us, slack_us, share, ttl_ms, start

local function read_bucket(index, gates, slow)
  local b = {index = index, key = key(), closing = gates[number()], cost = number(), burst = number(),
    slack = number(), share = number(), ttl = number(), start = number()}
  local kept = redis.call("HMGET", b.key, "booked", "started", "backfill", "live", "gate", "calls", "waited",
    "factor", "cut", "spread", "spread_end")
  b.missing = not kept[1]
  b.booked, b.started = tonumber(kept[1]), tonumber(kept[2])
  b.backfill, b.live, b.gate = tonumber(kept[3]) or 0, tonumber(kept[4]) or 0, tonumber(kept[5]) or 0
  b.calls, b.waited = tonumber(kept[6]) or 0, tonumber(kept[7]) or 0
  fill_pace(b, kept[8], kept[9], kept[10], kept[11])
  b.cost = math.ceil(b.cost * slow * stretch(b))
  b.room = math.max(b.burst, b.cost)
  return b
end

-- A gate leaves the bucket empty at its end.
local function heed_gate(b)
  if b.closing.closed > b.gate then
    b.gate = b.closing.closed
    b.started = math.max(b.started, b.closing["until"] + b.burst + b.slack)
    b.booked = b.started - b.slack
  end
end

local function save_bucket(b)
  redis.call("HSET", b.key, "booked", b.booked, "started", b.started, "backfill", b.backfill, "live", b.live,
    "gate", b.gate, "calls", b.calls, "waited", b.waited)
  keep(b.key, b.factor == 1 and b.ttl or math.max(b.ttl, KEPT_FACTOR_US / 1000))
end

local function over(used_up, cost, room)
  return math.max(used_up, now) + cost - room - now
end

local function backfill_pace(b)
  local cost = math.ceil(b.cost / b.share)
  return cost, math.max(math.ceil(b.burst / b.share), cost)
end
