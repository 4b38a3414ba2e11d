-- settle(): what a call's end says; gives back what the call held.
--
-- KEYS      events; circuit and permits for each circuit; each gate (gate.lua) that is concerned; each sorted set of
--           seats; each bucket whose pace learns; each window and each bucket the server told something of
-- ARGV      id, kind, started_us (0: unknown), retry_after_us (-1: none named), latency_us (0: unknown); number of circuits and
--           each (circuit.lua); marks for each (learn.lua); number of gates and for each: for how long a 429 that
--           names no wait closes it at first, and at most (µs); number of sets of seats; number of buckets that learn
--           and for each: start, index of its gate, adaptive, most, by how much such a 429 makes it slower, the
--           stretch that the server's headers want (0: none), reset_us, ttl_ms; number of windows that were told of and for each:
--           the window (window.lua), used at least; number of buckets, and for each: how far from now it is used
--           up in µs, slack_us, ttl_ms
-- returns   {now, changes, bans}; changes: index, old, new, reason, … flat; bans: index of a gate, until_us, the
--           how many-th in a row, … flat

local TELLING = {success = true, throttled = true, banned = true}

-- A ban that names no end lasts longer each time.
local function hear_ban(gate, call)
  local news, asked = call.started >= gate.banned, 0
  if news then
    gate.bans = now - gate.banned <= DAY_US and gate.bans + 1 or 1
    asked = now + math.min(BAN_FIRST_US * 2 ^ (gate.bans - 1), BAN_MOST_US)
  end
  if call.retry_after >= 0 then asked = now + math.max(call.retry_after, GATE_LEAST_US) end
  gate.banned = math.max(gate.banned, asked)
  shut(gate, asked)
  return news and call.retry_after < 0
end

-- Close the gate on a 429; say whether it is news of a limit that nobody knew. The calls that were in flight when
-- it closed tell nothing new.
local function hear(gate, call, first, most)
  local kind, retry_after, cut = call.kind, call.retry_after, false
  local news = call.started >= gate["until"]
  if kind == "success" and news and gate.strikes > 0 then
    redis.call("HSET", gate.key, "strikes", 0)
    gate.strikes = 0
  elseif kind == "banned" then
    gate.violations = gate.violations + 1
    cut = hear_ban(gate, call)
    save_gate(gate)
  elseif kind == "throttled" then
    gate.violations = gate.violations + 1
    if retry_after >= 0 then
      shut(gate, now + math.max(retry_after, GATE_LEAST_US))
    elseif news then
      shut(gate, now + math.min(first * 2 ^ gate.strikes, most))
      gate.strikes, cut = math.min(gate.strikes + 1, 10), true
    end
    save_gate(gate)
  end
  return cut
end

local function follow_latency(p, kind, latency)
  local cut, fine, since = p.cut > 0 and p.cut or p.start, kind == "success", now - p.step
  local near, after = cut <= 2 * p.start, nil
  if latency > SLOW_US then
    if near and since >= LATENCY_US and (fine or kind == "failure") then
      after = math.min(cut / 0.9, 2 * p.start)
    end
  elseif near and fine and latency > 0 and latency < FAST_US and since >= LATENCY_US then
    after = math.max(1 / (1 / cut + 0.05 / p.start), 1)
  elseif fine and cut > p.start and since >= RECOVERY_US then
    after = math.max(1 / (1 / cut + 0.1 / p.start), p.start)
  end
  if after then p.cut, p.step = after, now end
end

local function follow_headers(p, kind, wanted, reset)
  if wanted == 0 then return end
  local kept = now < p.spread_end and p.spread or 0
  if kind == "success" and now - p.cut_at >= QUIET_US then
    p.spread, p.spread_end = wanted, now + reset
  elseif wanted > kept then
    p.spread, p.spread_end = wanted, math.max(now + reset, p.spread_end)
  end
end

-- What a call's end says about the rate. Errors speed nothing up.
local function learn_pace(p, call, cuts)
  local kind = call.kind
  local throttled, cut = kind == "throttled" or kind == "banned", cuts[number()]
  local adaptive, most, slower = number() == 1, number(), number()
  local wanted, reset, ttl_ms = number(), number(), number()
  local violations, before = p.violations, stretch(p)
  if throttled then p.violations = violations + 1 end
  if adaptive then
    if cut then p.cut, p.step = math.min((p.cut > 0 and p.cut or p.start) * slower, most), now end
    if throttled then
      p.cut_at = now
    elseif now - p.cut_at >= QUIET_US then
      follow_latency(p, kind, call.latency)
    end
    follow_headers(p, kind, wanted, reset)
    count_change(p, before)
    return save_pace(p, ttl_ms)
  end
  redis.call("HSET", p.key, "violations", p.violations)
  keep(p.key, p.factor == 1 and ttl_ms or math.max(ttl_ms, KEPT_FACTOR_US / 1000))
end

-- Believe a server that says less is left than we think; never one that says more.
local function correct(bucket, used_up, slack, ttl_ms)
  local kept = redis.call("HMGET", bucket, "started", "booked")
  local started = tonumber(kept[1])
  if not started or used_up <= math.max(started, now) then return end
  redis.call("HSET", bucket, "started", used_up, "booked", math.max(tonumber(kept[2]), used_up - slack))
  keep(bucket, ttl_ms)
end

local function correct_window()
  local w, used = read_window(), number()
  if w.missing or used <= w.used then return end
  w.used = used
  save_window(w)
end

local function settle()
  events = key()
  local call = {id = text(), kind = text(), started = number(), retry_after = number(), latency = number()}
  if call.started == 0 then call.started = now end -- nobody knows when: it is news unless its gate is closed
  local changes, bans, cuts, circuits = {}, {}, {}, {}
  for i = 1, number() do circuits[i] = read_circuit(i - 1) end
  for _, c in ipairs(circuits) do learn(c, call, number(), changes) end
  for i = 1, number() do
    local name, first, most = key(), number(), number()
    local gate = TELLING[call.kind] and read_gate(name) or {}
    local banned = gate.banned
    cuts[i] = TELLING[call.kind] and hear(gate, call, first, most)
    if gate.banned ~= banned then
      for _, fact in ipairs({i - 1, gate.banned, gate.bans}) do bans[#bans + 1] = fact end
    end
  end
  for _ = 1, number() do redis.call("ZREM", key(), call.id) end
  for _ = 1, number() do learn_pace(read_pace(key(), number()), call, cuts) end
  for _ = 1, number() do correct_window() end
  for _ = 1, number() do correct(key(), now + number(), number(), number()) end
  return {now, changes, bans}
end
