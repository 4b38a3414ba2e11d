-- A rate limit: its hash is read into a table, with what the call needs of it.
--
-- KEYS   bucket    hash: booked, started, backfill, live, gate; all µs
-- ARGV   index of its gate, cost_us, burst_us, slack_us, share, ttl_ms

local function read_bucket(index, gates, slow)
  local b = {index = index, key = key(), closing = gates[number()], cost = number() * slow, burst = number(),
    slack = number(), share = number(), ttl = number()}
  b.room = math.max(b.burst, b.cost)
  local kept = redis.call("HMGET", b.key, "booked", "started", "backfill", "live", "gate")
  b.missing = not kept[1]
  b.booked, b.started = tonumber(kept[1]), tonumber(kept[2])
  b.backfill, b.live, b.gate = tonumber(kept[3]) or 0, tonumber(kept[4]) or 0, tonumber(kept[5]) or 0
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
    "gate", b.gate)
  keep(b.key, b.ttl)
end

local function over(used_up, cost, room)
  return math.max(used_up, now) + cost - room - now
end

local function backfill_pace(b)
  local cost = math.ceil(b.cost / b.share)
  return cost, math.max(math.ceil(b.burst / b.share), cost)
end
