-- repay(): what was spent elsewhere while this store was away. Nothing starts before everybody has found it again.
--
-- KEYS      since; each bucket; each window; each gate that was closed
-- numbers   hold_us, since_ttl_ms; whether calls were in flight; number of buckets and for each: burst_us, slack_us,
--           ttl_ms, debt_us; number of windows and each (window.lua); number of gates and for each: for how long yet,
--           how much of that is a ban (µs), the how many-th in a row
-- returns   nothing

local function repay()
  local since, hold, since_ttl = key(), number(), number()
  if number() == 1 then redis.call("SET", since, string.format("%.0f", now), "PX", since_ttl) end
  for _ = 1, number() do
    local b, burst, slack = load_bucket(key()), number(), number()
    b.ttl = number()
    b.started = math.max(b.started, now + hold + burst + slack) + number()
    b.booked = math.max(b.booked, b.started - slack)
    keep_bucket(b)
  end
  for _ = 1, number() do
    local w = read_window()
    w.used = w.amount
    keep_window(w)
  end
  for _ = 1, number() do
    local gate, left, banned, bans = load_gate(key()), number(), number(), number()
    if banned > 0 then gate.banned, gate.bans = math.max(gate.banned, now + banned), math.max(gate.bans, bans) end
    shut(gate, now + left)
    keep_gate(gate)
  end
end
