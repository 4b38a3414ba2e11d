-- limits(): what is kept of limits. Writes nothing.
--
-- KEYS      gate and limit for each
-- numbers   number of limits; for each 1 where it is a sorted set of seats
-- returns   now, then for each its gate, packed, and the limit, packed, or the ends of the leases taken

local function limits()
  local seen = {now}
  for _ = 1, number() do
    seen[#seen + 1] = fetch(key()) or ""
    if number() == 1 then
      local ends = {}
      for at, value in ipairs(redis.call("ZRANGE", key(), 0, -1, "WITHSCORES")) do
        if at % 2 == 0 then ends[#ends + 1] = value end
      end
      seen[#seen + 1] = ends
    else
      seen[#seen + 1] = fetch(key()) or ""
    end
  end
  return seen
end
