-- plain_settle(): `settle` where all is plain, as it is for most calls: a success of its circuits' own era, not slow,
-- no probe; circuits closed; gates without strikes; no bucket that learns, and nothing told of any limit.
--
-- It returns whether it was, and then all is done. If not it has changed nothing, and `settle` has to do it.

local function plain_settle()
  local k, saved, kind, _, _, _, circuits, marks_at = key_at + 1, {}, struct.unpack("<ddddd", figures, at)
  if kind ~= SUCCESS then return false end
  local n = marks_at + 8 * circuits
  for i = 1, circuits do
    local raw, marks = fetch(KEYS[k + 1]), struct.unpack("<d", figures, marks_at + 8 * (i - 1))
    if not raw then return false end
    local _, state, _, era, _, _, _, _, succeeded = struct.unpack("<Bdddddddd", raw)
    if state ~= CLOSED or marks ~= (era + 1) * 16 then return false end
    local tick = math.floor(now / struct.unpack("<d", figures, n))
    local own = RING_AT + tick % SLICES * 32
    local kept, calls, failures, slows = struct.unpack("<dddd", raw, own)
    if kept ~= tick then calls, failures, slows = 0, 0, 0 end
    saved[i] = string.sub(raw, 1, FAILURES_AT - 1) .. struct.pack("<ddd", 0, 0, succeeded + 1)
      .. string.sub(raw, FAILURES_AT + 24, own - 1) .. struct.pack("<dddd", tick, calls + 1, failures, slows)
      .. string.sub(raw, own + 32)
    k, n = k + 2, n + CIRCUIT_TERMS
  end
  local gates = struct.unpack("<d", figures, n)
  for i = 1, gates do
    local raw = fetch(KEYS[k + i])
    if raw then
      local _, _, _, strikes = struct.unpack("<Bddd", raw)
      if strikes > 0 then return false end
    end
  end
  k, n = k + gates, n + 8 + 16 * gates
  local seats, learning, windows, buckets, after = struct.unpack("<dddd", figures, n)
  if learning + windows + buckets > 0 then return false end
  for i = 1, seats do redis.call("ZREM", KEYS[k + i], ARGV[text_at + 1]) end
  for i = 1, circuits do redis.call("SET", KEYS[key_at + 2 * i], saved[i], "PX", DAY_MS) end
  key_at, text_at, at = k + seats, text_at + 1, after
  return true
end
