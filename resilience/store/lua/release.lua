-- release(): nothing was sent. Permits and seats come back, what a window counted, and each slot that is still the
-- newest.
--
-- KEYS      each set of permits and of seats; each window; each bucket
-- texts     id
-- numbers   number of sets; number of windows and for each: begin_us, cost; number of buckets and for each:
--           started_us, booked_us, cost_us
-- returns   nothing

local function release()
  local id = text()
  for _ = 1, number() do redis.call("ZREM", key(), id) end
  for _ = 1, number() do
    local w, begin, cost = load_window(key()), number(), number()
    if not w.missing and w.begin == begin then
      w.used = w.used - cost
      save_window(w)
    end
  end
  for _ = 1, number() do
    local b, started, booked, cost = load_bucket(key()), number(), number(), number()
    if not b.missing and b.started == started then
      b.started = started - cost
      if b.booked == booked then b.booked = booked - cost end
      save_bucket(b)
    end
  end
end
