-- release(): nothing was sent. Gives back permits and seats, what a window counted, and each slot that is still the
-- newest.
--
-- KEYS      each set of permits and of seats; each window; each bucket
-- ARGV      id; number of sets; number of windows and for each: begin_us, cost; number of buckets and for each: started_us, booked_us, cost_us
-- returns   nothing

local function release()
  local id = text()
  for _ = 1, number() do redis.call("ZREM", key(), id) end
  for _ = 1, number() do
    local window, begin, cost = key(), number(), number()
    if tonumber(redis.call("HGET", window, "begin") or nil) == begin then
      redis.call("HINCRBY", window, "used", -cost)
    end
  end
  for _ = 1, number() do
    local bucket, started, booked, cost = key(), number(), number(), number()
    local kept = redis.call("HMGET", bucket, "started", "booked")
    if tonumber(kept[1]) == started then
      redis.call("HSET", bucket, "started", started - cost)
      if tonumber(kept[2]) == booked then redis.call("HSET", bucket, "booked", booked - cost) end
    end
  end
end
