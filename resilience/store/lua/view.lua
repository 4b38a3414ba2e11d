-- view(): how circuits stand. Writes nothing.
--
-- KEYS      circuit, permits and override for each circuit
-- ARGV      number of circuits and each (circuit.lua)
-- returns   for each the fields of `Reading`, in their order; the state is "" where nothing is known

local COUNTED = {"succeeded", "failed", "opens", "recovered", "relapsed", "open_time", "opened", "failed_at", "changed"}

local function append(seen, ...)
  for _, value in ipairs({...}) do seen[#seen + 1] = value end
end

local function standing(c)
  if c.missing then return {"", 0, 0, c.failures, 0, 0, 0} end
  if c["until"] > 0 and c["until"] <= now then
    if c.state == "open" then return {"half_open", 0, policy(c).probes, c.failures, 0, 0, c.open} end
    return {"closed", 0, 0, 0, 0, 0, 0}
  end
  local free = c.state == "half_open" and free_permits(c) or 0
  return {c.state, c["until"], free, c.failures, c.good, c.bad, c.open}
end

-- Nobody watches the clock: a state whose time is over has changed when it was over.
local function counted(c)
  local figures = redis.call("HMGET", c.key, unpack(COUNTED))
  for i = 1, #COUNTED do figures[i] = tonumber(figures[i]) or 0 end
  figures[6] = figures[6] + open_time(c)
  if c["until"] > 0 and c["until"] <= now then figures[9] = c["until"] end
  return figures
end

local function forced(c, override)
  if c.state ~= "forced_open" and c.state ~= "disabled" then return "", "", 0 end
  if c["until"] > 0 and c["until"] <= now then return "", "", 0 end
  local kept = redis.call("HMGET", override, "era", "by", "why", "since")
  if tonumber(kept[1]) ~= c.era then return "", "", 0 end
  return kept[2], kept[3], tonumber(kept[4])
end

local function view()
  local seen = {}
  for i = 1, number() do
    local c = read_circuit(i - 1)
    seen[i] = standing(c)
    append(seen[i], window(c))
    append(seen[i], unpack(counted(c)))
    append(seen[i], forced(c, key()))
    append(seen[i], now)
  end
  return seen
end
