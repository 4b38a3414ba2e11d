-- admit(): may one call start now? Nothing is spent unless every circuit, gate, seat, window and bucket agrees.
--
-- KEYS      events   stream: the transitions of the API's circuits
--           since    string: since when all calls are known, µs
--           restored string: this store was told what outlives it
--           circuit and permits for each circuit; each gate; each sorted set of seats; each window; each bucket
--           ticket   hash: issued, end, and bucket key → slot; all µs. It is the last one
-- texts     id
-- numbers   patience_us, flags (1 it has a ticket, 2 it is live, 4 there is a ledger, 8 the asker can recall
--           circuits), since_ttl_ms; number of circuits and each (circuit.lua); number of gates; number of sets of
--           seats and for each: seats, lease_us; number of windows and each (window.lua); number of buckets and
--           each (bucket.lua)
-- returns   where the call may start, no circuit has turned and none is tried, numbers of 8 bytes in one string: now,
--           the era of each circuit, the cost of each bucket, the begin of each window, started and booked (or 0) of
--           each bucket
--           {GO, now, changes, such a string, {1 or 0 for each circuit: the call holds a permit, …}}
--           {WAIT, now, changes, wait_us, with_ticket, reason, index}
--           {LOST, now, changes}: nothing is known of a circuit, and the asker recalls what was decided
--           {REFUSE, now, changes, index, state, until_us, failures}
--           {RESTORE, now, changes}
--           {WRITE, now, changes, index of a window, begin_us, wanted}
--           changes: index, old, new, reason, … flat

local function read_request()
  events = key()
  local r = {since = key(), restored = key(), ticket = KEYS[#KEYS], id = text(), changes = {}, circuits = {},
    gates = {}, seats = {}, windows = {}, buckets = {}, slow = 1}
  local flags, circuits
  r.patience, flags, r.since_ttl, circuits, at = struct.unpack("<dddd", figures, at)
  r.has_ticket, r.live, r.ledger, r.recalls = flags % 2 == 1, flags % 4 > 1, flags % 8 > 3, flags > 7
  if r.ledger and redis.call("EXISTS", r.restored) == 0 then return r, {RESTORE, now, r.changes} end
  for i = 1, circuits do
    local c = read_circuit(i - 1)
    r.lost = r.lost or r.recalls and c.missing
    wake(c, r.changes)
    r.slow = math.max(r.slow, slowdown(c))
    r.circuits[i] = c
  end
  for i = 1, number() do r.gates[i] = load_gate(key()) end
  for i = 1, number() do r.seats[i] = {key = key(), seats = number(), lease = number()} end
  for i = 1, number() do r.windows[i] = read_window() end
  for i = 1, number() do r.buckets[i] = read_bucket(i - 1, r.gates, r.slow) end
  return r
end

-- Since when this store knows of every call: now, if it knows nothing yet.
local function known_since(r)
  local since = tonumber(redis.call("GET", r.since)) or now
  redis.call("SET", r.since, string.format("%.0f", since), "PX", r.since_ttl)
  return since
end

local function wait(r, wait_us, with_ticket, reason, index)
  return {WAIT, now, r.changes, wait_us, with_ticket and 1 or 0, reason, index}
end

local function circuits_say(r)
  if r.lost then return {LOST, now, r.changes} end
  for _, c in ipairs(r.circuits) do
    if c.state == OPEN or c.state == FORCED_OPEN then
      return {REFUSE, now, r.changes, c.index, c.state, c.till > 0 and c.till or now + policy(c).open, c.failures}
    end
  end
  for _, c in ipairs(r.circuits) do
    if c.state == HALF_OPEN and free_permits(c) == 0 then
      return wait(r, PERMIT_WAIT_US, r.has_ticket, "half_open", c.index)
    end
  end
end

local function gates_say(r)
  for i, gate in ipairs(r.gates) do
    if now < gate.till then
      return wait(r, gate.till - now, false, now < gate.banned and "ban" or "gate", i - 1)
    end
  end
end

local function seats_say(r)
  for i, seat in ipairs(r.seats) do
    local since = known_since(r)
    if now < since + seat.lease then
      return wait(r, since + seat.lease - now, r.has_ticket, "seats", i - 1)
    end
    redis.call("ZREMRANGEBYSCORE", seat.key, "-inf", now)
    if redis.call("ZCARD", seat.key) >= seat.seats then
      return wait(r, SEAT_WAIT_US, r.has_ticket, "seats", i - 1)
    end
  end
end

-- A window that the store has not known from its beginning counts as used up; a budget is what is written down.
local function windows_say(r)
  for i, w in ipairs(r.windows) do
    if w.missing and not w.saved and known_since(r) > w.begin then w.used = w.amount end
    if r.live and w.share < 1 then
      w.live = now
      keep_window(w)
    end
    if not fits(w, r.live) then
      return wait(r, w.finish - now, r.has_ticket, w.saved and "budget" or "window", i - 1)
    end
  end
end

-- How much of a budget has to be written down before this call is spent.
local function ledger_says(r)
  if not r.ledger then return end
  for i, w in ipairs(r.windows) do
    local most = w.used + w.cost
    if w.saved and most > w.written then
      for _, b in ipairs(r.buckets) do
        if b.seen or b.missing then keep_bucket(b) end
      end
      local wanted = math.min(math.max(w.block, most - w.written), w.amount - w.written)
      return {WRITE, now, r.changes, i - 1, w.begin, wanted}
    end
  end
end

-- The slots of the ticket, unless it is unknown or a gate has closed since.
local function read_slots(r)
  local slots = {}
  if not (r.live and r.has_ticket) then return slots end
  local kept = redis.call("HGETALL", r.ticket)
  for i = 1, #kept, 2 do slots[kept[i]] = tonumber(kept[i + 1]) end
  if not slots.issued or slots["end"] <= now then return {} end
  for _, gate in ipairs(r.gates) do
    if slots.issued <= gate.closed then return {} end
  end
  return slots
end

local function wait_of(b, slots, live)
  b.slot = slots[b.key]
  if b.slot and now < b.slot then return b.slot - now end
  local longest = over(b.booked, b.cost, b.room)
  if b.slot then
    local late = now - b.slot
    b.late = late > b.slack
    local wait_us = over(b.started, b.cost, b.room + (b.late and 0 or b.slack))
    if wait_us <= 0 or not b.late or (late <= LATE_US and longest > LATE_US) then return wait_us end
    b.slot = nil
  end
  if not live and b.share < 1 and now - b.live < LIVE_SEEN_US then
    longest = math.max(longest, over(b.backfill, backfill_pace(b)))
  end
  return longest
end

-- Reserve a slot at the end of the queue.
local function book(r, b, wait_us)
  b.booked = math.max(b.booked, now) + b.cost
  b.waited = b.waited + wait_us
  local slot = now + wait_us
  redis.call("HSET", r.ticket, "issued", now, "end", slot + TICKET_KEPT_US, b.key, slot)
  keep(r.ticket, math.ceil((wait_us + TICKET_KEPT_US) / 1000))
end

local function buckets_say(r)
  local slots, binding, longest = read_slots(r), nil, 0
  if r.live and r.has_ticket and not slots.issued then redis.call("DEL", r.ticket) end
  for _, b in ipairs(r.buckets) do
    -- A bucket found missing was empty when the store began to know.
    if b.missing then
      local empty = known_since(r) + b.burst
      b.booked, b.started = empty, empty + b.slack
    end
    heed_gate(b)
    local wait_us = wait_of(b, slots, r.live)
    if wait_us > longest then binding, longest = b, wait_us end
    if r.live and b.share < 1 then b.live, b.seen = now, true end
  end
  if not binding then return end
  local booking = r.live and not binding.slot and longest <= r.patience
  if booking then book(r, binding, longest) end
  for _, b in ipairs(r.buckets) do
    if b.seen or b.missing or (booking and b == binding) then keep_bucket(b) end
  end
  return wait(r, longest, booking or slots.issued, "rate", binding.index)
end

local function spend(b, live)
  b.calls = b.calls + 1
  b.started = math.max(b.started, now) + b.cost
  if not b.slot then b.booked = math.max(b.booked, now) + b.cost end
  b.booked = math.max(b.booked, b.started - (b.late and 0 or b.slack))
  if not live and b.share < 1 then
    local cost, room = backfill_pace(b)
    b.backfill = math.min(math.max(b.backfill, now) + cost, now + room)
  end
  keep_bucket(b)
end

local function start(r)
  local eras, costs, periods, slots, permits, probes = "", "", "", "", {}, false
  for i, c in ipairs(r.circuits) do
    permits[i] = c.state == HALF_OPEN and 1 or 0
    if c.state == HALF_OPEN then
      probes = true
      redis.call("ZREMRANGEBYSCORE", c.permits, "-inf", now)
      redis.call("ZADD", c.permits, now + policy(c).lease, r.id)
      keep(c.permits)
    end
    eras = eras .. struct.pack("<i8", c.era)
  end
  for _, seat in ipairs(r.seats) do
    redis.call("ZADD", seat.key, now + seat.lease, r.id)
    keep(seat.key)
  end
  for _, w in ipairs(r.windows) do
    w.used, w.calls = w.used + w.cost, w.calls + 1
    keep_window(w)
    periods = periods .. struct.pack("<i8", w.begin)
  end
  for _, b in ipairs(r.buckets) do
    spend(b, r.live)
    costs = costs .. struct.pack("<i8", b.cost)
    slots = slots .. struct.pack("<i8i8", b.started, b.slot and 0 or b.booked)
  end
  if r.has_ticket then redis.call("DEL", r.ticket) end
  local grant = struct.pack("<i8", now) .. eras .. costs .. periods .. slots
  if #r.changes == 0 and not probes then return grant end
  return {GO, now, r.changes, grant, permits}
end

local function admit()
  local r, empty = read_request()
  return empty or circuits_say(r) or gates_say(r) or seats_say(r) or windows_say(r) or buckets_say(r)
    or ledger_says(r) or start(r)
end
