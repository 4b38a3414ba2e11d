-- restore(): tell an empty store what outlives it. What it knows better stays.
--
-- KEYS      restored  string: that this was done
--           each gate; each window
-- numbers   number of gates and for each: until_us, bans; number of windows and for each: begin_us, spent
-- returns   nothing

local function restore()
  redis.call("SET", key(), 1, "PX", DAY_MS)
  for _ = 1, number() do
    local gate, till, bans = load_gate(key()), number(), number()
    if till > math.max(now - DAY_US, gate.banned) then
      gate.banned, gate.bans = till, bans
      if till > now then shut(gate, till) end
      keep_gate(gate)
    end
  end
  for _ = 1, number() do
    local w, begin, spent = load_window(key()), number(), number()
    if w.missing or w.begin < begin then
      w.begin, w.used, w.written = begin, spent, spent
      save_window(w, BUDGET_KEPT_US / 1000)
    end
  end
end
