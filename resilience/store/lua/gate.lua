-- The gate of a sharer: until when the server wants to hear nothing.
--
-- KEYS   gate      hash: closed, until, strikes, banned, bans, violations

local function read_gate(name)
  local kept = redis.call("HMGET", name, "closed", "until", "strikes", "banned", "bans", "violations")
  return {key = name, closed = tonumber(kept[1]) or 0, ["until"] = tonumber(kept[2]) or 0,
    strikes = tonumber(kept[3]) or 0, banned = tonumber(kept[4]) or 0, bans = tonumber(kept[5]) or 0,
    violations = tonumber(kept[6]) or 0}
end

local function shut(gate, till)
  if till > gate["until"] then gate.closed, gate["until"] = now, till end
end

local function save_gate(gate)
  redis.call("HSET", gate.key, "closed", gate.closed, "until", gate["until"], "strikes", gate.strikes,
    "banned", gate.banned, "bans", gate.bans, "violations", gate.violations)
  keep(gate.key, math.max(0, math.ceil((gate["until"] - now) / 1000)) + 2 * DAY_MS)
end
