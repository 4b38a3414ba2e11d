-- A limit per window of the clock or calendar, or a budget (layout.py), with what the call needs of it.
--
-- KEYS      window
-- numbers   amount, length_us, share, saved, block, cost, ttl_ms; number of edges and each: where windows of the
--           calendar end, around now (0: every length_us)

local function read_window()
  local w, length, saved, edges, first, last = load_window(key()), nil, nil, nil, nil, nil
  w.amount, length, w.share, saved, w.block, w.cost, w.ttl, edges, at =
    struct.unpack("<dddddddd", figures, at)
  for _ = 1, edges do
    local before, edge = last, number()
    if before and before <= now and now < edge then first, w.finish = before, edge end
    last = edge
  end
  first = first or now - now % length
  w.finish, w.saved = w.finish or first + length, saved == 1
  if w.begin ~= first then w.begin, w.used, w.written = first, 0, 0 end
  return w
end

local function keep_window(w)
  save_window(w, math.max(w.ttl, math.ceil((w.finish - now) / 1000) + DAY_MS))
end

-- For backfills there is room above the reserve, if live work was seen in the last window.
local function fits(w, live)
  local room = w.amount
  if not live and now - w.live < math.max(LIVE_SEEN_US, w.finish - w.begin) then
    room = math.max(math.floor(w.amount * w.share), w.cost)
  end
  return w.used + w.cost <= room
end
