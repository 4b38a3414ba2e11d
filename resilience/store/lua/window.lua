-- A limit per window of the clock or calendar, or a budget: its hash is read into a table.
--
-- KEYS   window    hash: begin, used, written, live (times in µs), calls
-- ARGV   amount, length_us, share, saved, block, cost, ttl_ms; number of edges and each: where windows of the
--        calendar end, around now (0: every length_us)

local function read_window()
  local w = {key = key(), amount = number(), length = number(), share = number(),
    saved = number() == 1, block = number(), cost = number(), ttl = number()}
  local before
  for _ = 1, number() do
    local edge = number()
    if before and before <= now and now < edge then w.begin, w["end"] = before, edge end
    before = edge
  end
  w.begin = w.begin or now - now % w.length
  w["end"] = w["end"] or w.begin + w.length
  local kept = redis.call("HMGET", w.key, "begin", "used", "written", "live", "calls")
  w.missing = not kept[1]
  w.live, w.calls = tonumber(kept[4]) or 0, tonumber(kept[5]) or 0
  local is_current = tonumber(kept[1]) == w.begin
  w.used = is_current and tonumber(kept[2]) or 0
  w.written = is_current and tonumber(kept[3]) or 0
  return w
end

local function save_window(w)
  redis.call("HSET", w.key, "begin", w.begin, "used", w.used, "written", w.written, "live", w.live,
    "calls", w.calls)
  keep(w.key, math.max(w.ttl, math.ceil((w["end"] - now) / 1000) + DAY_MS))
end

-- For backfills there is room above the reserve, if live work was seen in the last window.
local function fits(w, live)
  local room = w.amount
  if not live and now - w.live < math.max(LIVE_SEEN_US, w["end"] - w.begin) then
    room = math.max(math.floor(w.amount * w.share), w.cost)
  end
  return w.used + w.cost <= room
end
