-- plain_admit(): `admit` where all is plain, as it is for most calls: circuits closed, and not just so; gates open;
-- buckets known, and with room; no ticket, no seats, no windows, no share for live work that holds a backfill back.
--
-- It returns what `admit` would, or nil where anything is not plain: then it has changed nothing, and `admit` has to
-- decide; tests/integration/test_plain_calls.py holds the two together. It comes before the other functions, for to
-- define those takes longer than to decide this.

local function plain_admit()
  local k, grant, slots, saved, closings, _, flags, _, circuits, n = key_at + 3, pack("<i8", now), "", {}, nil,
    unpack("<dddd", figures, at)
  local has_ticket, live, ledger, recalls = flags % 2 == 1, flags % 4 > 1, flags % 8 > 3, flags > 7
  if has_ticket or ledger and call("EXISTS", KEYS[k]) == 0 then return end
  for _ = 1, circuits do
    local raw, era = fetch(KEYS[k + 1]), 0
    if raw then
      local _, state, known, its_era, till, closed = unpack("<Bddddd", raw)
      if state ~= CLOSED or till ~= 0 or recalls and known == 0 then return end
      if closed ~= 0 and now - closed < 2 * unpack("<d", figures, n + STEP) then return end
      era = its_era
    elseif recalls then
      return
    end
    grant, k, n = grant .. pack("<i8", era), k + 2, n + CIRCUIT_TERMS
  end
  local gates, seats, windows, buckets
  gates, seats, windows, buckets, n = unpack("<dddd", figures, n)
  if seats > 0 or windows > 0 then return end
  for i = 1, gates do
    local raw = fetch(KEYS[k + i])
    if raw then
      local _, closed, till = unpack("<Bdd", raw)
      if now < till then return end
      closings = closings or {}
      closings[i] = closed
    end
  end
  k = k + gates
  for i = 1, buckets do
    local gate, cost, burst, slack, share, start, _
    gate, cost, burst, slack, share, _, start, n = unpack("<ddddddd", figures, n)
    local raw = fetch(KEYS[k + i])
    if not raw or share < 1 and not live then return end
    local _, booked, started, live_at, calls, kept, _, heard, _, factor, cut, spread, spread_end =
      unpack("<Bdddddddddddd", raw)
    if booked == 0 or now - kept > RENEW_US or closings and closings[gate] and closings[gate] > heard then return end
    local slow = cut > 0 and cut or start
    if now < spread_end and spread > slow then slow = spread end
    if slow > factor then cost = math.ceil(cost * (slow / factor)) end
    booked = (booked > now and booked or now) + cost
    if booked - (cost > burst and cost or burst) > now then return end
    started = (started > now and started or now) + cost
    if booked < started - slack then booked = started - slack end
    if share < 1 then live_at = now end
    saved[i] = pack("<dddd", booked, started, live_at, calls + 1)
    grant, slots = grant .. pack("<i8", cost), slots .. pack("<i8i8", started, booked)
  end
  for i = 1, buckets do call("SETRANGE", KEYS[k + i], BOOKED_AT, saved[i]) end
  return grant .. slots
end
