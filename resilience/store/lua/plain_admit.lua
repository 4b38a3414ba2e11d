-- plain_admit(): `admit` where all is plain, as it is for most calls: circuits closed, and not just so; gates open;
-- buckets known, and with room; no ticket, no seats, no windows, no share for live work that holds a backfill back.
--
-- It returns what `admit` would, or nil where anything is not plain: then it has changed nothing, and `admit` has to
-- decide. It comes before the other functions, for to define those takes longer than to decide this.

local function plain_admit()
  local k, grant, slots, saved, closings, _, flags, _, circuits, n = key_at + 3, struct.pack("<i8", now), "", {}, nil,
    struct.unpack("<dddd", figures, at)
  local has_ticket, live, ledger, recalls = flags % 2 == 1, flags % 4 > 1, flags % 8 > 3, flags > 7
  if has_ticket or ledger and redis.call("EXISTS", KEYS[k]) == 0 then return end
  for _ = 1, circuits do
    local raw, era = fetch(KEYS[k + 1]), 0
    if raw then
      local _, state, known, its_era, till, closed = struct.unpack("<Bddddd", raw)
      if state ~= CLOSED or till ~= 0 or recalls and known == 0 then return end
      if closed ~= 0 and now - closed < 2 * struct.unpack("<d", figures, n + STEP) then return end
      era = its_era
    elseif recalls then
      return
    end
    grant, k, n = grant .. struct.pack("<i8", era), k + 2, n + CIRCUIT_TERMS
  end
  local gates, seats, windows, buckets
  gates, seats, windows, buckets, n = struct.unpack("<dddd", figures, n)
  if seats > 0 or windows > 0 then return end
  for i = 1, gates do
    local raw = fetch(KEYS[k + i])
    if raw then
      local _, closed, till = struct.unpack("<Bdd", raw)
      if now < till then return end
      closings = closings or {}
      closings[i] = closed
    end
  end
  k = k + gates
  for i = 1, buckets do
    local gate, cost, burst, slack, share, ttl, start
    gate, cost, burst, slack, share, ttl, start, n = struct.unpack("<ddddddd", figures, n)
    local raw = fetch(KEYS[k + i])
    if not raw or share < 1 and not live then return end
    local _, booked, started, backfill, live_at, heard, calls, waited, factor, cut, _, _, spread, spread_end =
      struct.unpack("<Bddddddddddddd", raw)
    if booked == 0 or closings and closings[gate] and closings[gate] > heard then return end
    local slow = cut > 0 and cut or start
    if now < spread_end and spread > slow then slow = spread end
    if slow > factor then cost = math.ceil(cost * (slow / factor)) end
    booked = (booked > now and booked or now) + cost
    if booked - (cost > burst and cost or burst) > now then return end
    started = (started > now and started or now) + cost
    if booked < started - slack then booked = started - slack end
    if share < 1 then live_at = now end
    if factor ~= 1 then ttl = math.max(ttl, KEPT_FACTOR_US / 1000) end
    saved[2 * i - 1] = struct.pack("<Bddddddd", LAYOUT, booked, started, backfill, live_at, heard, calls + 1, waited)
      .. string.sub(raw, PACE_AT)
    saved[2 * i] = ttl
    grant, slots = grant .. struct.pack("<i8", cost), slots .. struct.pack("<i8i8", started, booked)
  end
  for i = 1, buckets do redis.call("SET", KEYS[k + i], saved[2 * i - 1], "PX", saved[2 * i]) end
  return grant .. slots
end
