-- restore(): tell an empty store what outlives it. What it knows better stays.
--
-- KEYS      restored  string: that this was done
--           each gate; each window
-- ARGV      number of gates and for each: until_us, bans; number of windows and for each: begin_us, spent
-- returns   nothing

local function restore()
  redis.call("SET", key(), 1, "PX", DAY_MS)
  for _ = 1, number() do
    local gate, till, bans = read_gate(key()), number(), number()
    if till > math.max(now - DAY_US, gate.banned) then
      gate.banned, gate.bans = till, bans
      if till > now then shut(gate, till) end
      save_gate(gate)
    end
  end
  for _ = 1, number() do
    local window, begin, spent = key(), number(), number()
    local kept = tonumber(redis.call("HGET", window, "begin") or nil)
    if not kept or kept < begin then
      redis.call("HSET", window, "begin", begin, "used", spent, "written", spent)
      keep(window, BUDGET_KEPT_US / 1000)
    end
  end
end
