-- limits(): what is kept of limits. Writes nothing.
--
-- KEYS      gate and limit for each
-- ARGV      number of limits; for each 1 where it is a sorted set of seats
-- returns   {now, {gate closed, until, banned, violations}, fields and values of the hash, or the ends of the leases taken; …}

local function limits()
  local seen = {now}
  for _ = 1, number() do
    local gate = read_gate(key())
    seen[#seen + 1] = {gate.closed, gate["until"], gate.banned, gate.violations}
    if number() == 1 then
      local ends = {}
      for at, value in ipairs(redis.call("ZRANGE", key(), 0, -1, "WITHSCORES")) do
        if at % 2 == 0 then ends[#ends + 1] = value end
      end
      seen[#seen + 1] = ends
    else
      seen[#seen + 1] = redis.call("HGETALL", key())
    end
  end
  return seen
end
