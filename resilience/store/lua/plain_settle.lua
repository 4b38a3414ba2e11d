-- plain_settle(): `settle` where all is plain, as it is for most calls: a success of its circuits' own era, not slow,
-- no probe; circuits closed, with no failure to forget and some call in this slice of their window; gates without
-- strikes; no bucket that learns, and nothing told of any limit.
--
-- It returns whether it was, and then all is done. If not it has changed nothing, and `settle` has to do it.

local function plain_settle()
  local k, saved, kind, _, _, _, circuits, marks_at = key_at + 1, {}, unpack("<ddddd", figures, at)
  if kind ~= SUCCESS then return false end
  local n = marks_at + 8 * circuits
  for i = 1, circuits do
    local raw, marks = fetch(KEYS[k + 1]), unpack("<d", figures, marks_at + 8 * (i - 1))
    if not raw then return false end
    local _, state, _, era, _, _, failures, throttles, kept = unpack("<Bdddddddd", raw)
    if state ~= CLOSED or marks ~= (era + 1) * 16 or failures + throttles > 0 then return false end
    local tick = math.floor(now / unpack("<d", figures, n))
    local slice_at = RING_AT + tick % SLICES * 32
    local known, calls = unpack("<dd", raw, slice_at + 1)
    if known ~= tick or now - kept > RENEW_US then return false end
    saved[2 * i - 1], saved[2 * i] = slice_at + 8, pack("<d", calls + 1)
    k, n = k + 2, n + CIRCUIT_TERMS
  end
  local gates = unpack("<d", figures, n)
  for i = 1, gates do
    local raw = fetch(KEYS[k + i])
    if raw then
      local _, _, _, strikes = unpack("<Bddd", raw)
      if strikes > 0 then return false end
    end
  end
  k, n = k + gates, n + 8 + 16 * gates
  local seats, learning, windows, buckets, after = unpack("<dddd", figures, n)
  if learning + windows + buckets > 0 then return false end
  for i = 1, seats do call("ZREM", KEYS[k + i], ARGV[text_at + 1]) end
  for i = 1, circuits do call("SETRANGE", KEYS[key_at + 2 * i], saved[2 * i - 1], saved[2 * i]) end
  key_at, text_at, at = k + seats, text_at + 1, after
  return true
end
