-- settle(): what a call's end says; gives back what the call held.
--
-- KEYS      events; circuit and permits for each circuit; each gate that is concerned; each sorted set of seats; each
--           bucket whose pace learns; each window and each bucket the server told something of
-- texts     id
-- numbers   kind, started_us (0: unknown), retry_after_us (-1: none named), latency_us (0: unknown); number of
--           circuits, marks for each (learn.lua), and each (circuit.lua); number of gates and for each: for how
--           long a 429 that names no wait closes it at first, and at most (µs); number of sets of seats; number of
--           buckets that learn and for each: start, index of its gate, adaptive, most, by how much such a 429 makes
--           it slower, the stretch that the server's headers want (0: none), reset_us, ttl_ms; number of windows that
--           were told of and for each: the window (window.lua), used at least; number of such buckets, and for each:
--           how far from now it is used up in µs, slack_us, ttl_ms
-- returns   0 where nothing has turned and nobody was banned, or {now, changes, bans}; changes: index, old, new,
--           reason, … flat; bans: index of a gate, until_us, the how many-th in a row, … flat

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
  local news, cut = call.started >= gate.till, false
  if call.kind == SUCCESS then
    if not news or gate.strikes == 0 then return false end
    gate.strikes = 0
  elseif call.kind == BANNED then
    gate.violations = gate.violations + 1
    cut = hear_ban(gate, call)
  else
    gate.violations = gate.violations + 1
    if call.retry_after >= 0 then
      shut(gate, now + math.max(call.retry_after, GATE_LEAST_US))
    elseif news then
      shut(gate, now + math.min(first * 2 ^ gate.strikes, most))
      gate.strikes, cut = math.min(gate.strikes + 1, 10), true
    end
  end
  keep_gate(gate)
  return cut
end

local function follow_latency(b, kind, latency)
  local cut, fine, since = b.cut > 0 and b.cut or b.start, kind == SUCCESS, now - b.step
  local near, after = cut <= 2 * b.start, nil
  if latency > SLOW_US then
    if near and since >= LATENCY_US and (fine or kind == FAILURE) then
      after = math.min(cut / 0.9, 2 * b.start)
    end
  elseif near and fine and latency > 0 and latency < FAST_US and since >= LATENCY_US then
    after = math.max(1 / (1 / cut + 0.05 / b.start), 1)
  elseif fine and cut > b.start and since >= RECOVERY_US then
    after = math.max(1 / (1 / cut + 0.1 / b.start), b.start)
  end
  if after then b.cut, b.step = after, now end
end

local function follow_headers(b, kind, wanted, reset)
  if wanted == 0 then return end
  local kept = now < b.spread_end and b.spread or 0
  if kind == SUCCESS and now - b.cut_at >= QUIET_US then
    b.spread, b.spread_end = wanted, now + reset
  elseif wanted > kept then
    b.spread, b.spread_end = wanted, math.max(now + reset, b.spread_end)
  end
end

-- What a call's end says about the rate. Errors speed nothing up.
local function learn_pace(call, cuts)
  local b, kind = load_bucket(key()), call.kind
  local gate, adaptive, most, slower, wanted, reset
  b.start, gate, adaptive, most, slower, wanted, reset, b.ttl, at = struct.unpack("<dddddddd", figures, at)
  local throttled, before = kind == THROTTLED or kind == BANNED, stretch(b)
  if throttled then b.violations = b.violations + 1 end
  if adaptive == 1 then
    if cuts[gate] then b.cut, b.step = math.min((b.cut > 0 and b.cut or b.start) * slower, most), now end
    if throttled then
      b.cut_at = now
    elseif now - b.cut_at >= QUIET_US then
      follow_latency(b, kind, call.latency)
    end
    follow_headers(b, kind, wanted, reset)
    count_change(b, before)
  end
  keep_bucket(b)
end

-- Believe a server that says less is left than we think; never one that says more.
local function correct()
  local b, used_up, slack = load_bucket(key()), now + number(), number()
  b.ttl = number()
  if b.started == 0 or used_up <= math.max(b.started, now) then return end
  b.started, b.booked = used_up, math.max(b.booked, used_up - slack)
  keep_bucket(b)
end

local function correct_window()
  local w, used = read_window(), number()
  if w.missing or used <= w.used then return end
  w.used = used
  keep_window(w)
end

local function settle()
  events = key()
  local call, changes, bans, cuts, circuits = {id = text()}, {}, {}, {}, nil
  call.kind, call.started, call.retry_after, call.latency, circuits, at = struct.unpack("<ddddd", figures, at)
  if call.started == 0 then call.started = now end -- nobody knows when: it is news unless its gate is closed
  local marks_at = at
  at = at + 8 * circuits
  for i = 1, circuits do
    local marks = struct.unpack("<d", figures, marks_at + 8 * (i - 1))
    learn(read_circuit(i - 1), call, marks, changes)
  end
  local telling = call.kind == SUCCESS or call.kind == THROTTLED or call.kind == BANNED
  for i = 1, number() do
    local name, first, most = key(), number(), number()
    if telling then
      local gate = load_gate(name)
      local banned = gate.banned
      cuts[i] = hear(gate, call, first, most)
      if gate.banned ~= banned then
        for _, fact in ipairs({i - 1, gate.banned, gate.bans}) do bans[#bans + 1] = fact end
      end
    end
  end
  for _ = 1, number() do redis.call("ZREM", key(), call.id) end
  for _ = 1, number() do learn_pace(call, cuts) end
  for _ = 1, number() do correct_window() end
  for _ = 1, number() do correct() end
  if #changes == 0 and #bans == 0 then return 0 end
  return {now, changes, bans}
end
