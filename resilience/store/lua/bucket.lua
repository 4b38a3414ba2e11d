-- A rate limit (layout.py), with what the call needs of it.
--
-- KEYS      bucket
-- numbers   index of its gate, cost_us, burst_us, slack_us, share, ttl_ms, start

-- One that only its pace is known of is missing.
local function read_bucket(index, gates, slow)
  local b, gate, cost = load_bucket(key()), nil, nil
  gate, cost, b.burst, b.slack, b.share, b.ttl, b.start, at = struct.unpack("<ddddddd", figures, at)
  b.index, b.missing, b.closing = index, b.booked == 0, gates[gate]
  b.cost = math.ceil(cost * slow * stretch(b))
  b.room = math.max(b.burst, b.cost)
  return b
end

-- A gate leaves the bucket empty at its end.
local function heed_gate(b)
  if b.closing.closed > b.gate then
    b.gate = b.closing.closed
    b.started = math.max(b.started, b.closing.till + b.burst + b.slack)
    b.booked = b.started - b.slack
  end
end

local function over(used_up, cost, room)
  return math.max(used_up, now) + cost - room - now
end

local function backfill_pace(b)
  local cost = math.ceil(b.cost / b.share)
  return cost, math.max(math.ceil(b.burst / b.share), cost)
end
