-- view(): how circuits stand. Writes nothing.
--
-- KEYS      circuit, permits and override for each circuit
-- numbers   number of circuits and each (circuit.lua)
-- returns   for each the fields of `Reading`, in their order; the state is -1 where nothing is known

local function standing(c)
  if c.missing then return -1, 0, 0, c.failures, 0, 0, 0 end
  if c.till > 0 and c.till <= now then
    if c.state == OPEN then return HALF_OPEN, 0, policy(c).probes, c.failures, 0, 0, c.open end
    return CLOSED, 0, 0, 0, 0, 0, 0
  end
  local free = c.state == HALF_OPEN and free_permits(c) or 0
  return c.state, c.till, free, c.failures, c.good, c.bad, c.open
end

local function forced(c, override)
  if c.state ~= FORCED_OPEN and c.state ~= DISABLED then return "", "", 0 end
  if c.till > 0 and c.till <= now then return "", "", 0 end
  local kept = redis.call("HMGET", override, "era", "by", "why", "since")
  if tonumber(kept[1]) ~= c.era then return "", "", 0 end
  return kept[2], kept[3], tonumber(kept[4])
end

local function append(seen, ...)
  for _, value in ipairs({...}) do seen[#seen + 1] = value end
end

local function view()
  local seen = {}
  for i = 1, number() do
    local c, each = read_circuit(i - 1), {}
    append(each, standing(c))
    append(each, window(c))
    append(each, c.succeeded + successes(c), c.failed, c.opens, c.recovered, c.relapsed, c.open_time + open_time(c), c.opened)
    -- Nobody watches the clock: a state whose time is over has changed when it was over.
    append(each, c.failed_at, c.till > 0 and c.till <= now and c.till or c.changed)
    append(each, forced(c, key()))
    append(each, now)
    seen[i] = each
  end
  return seen
end
