-- The pace of a rate limit: by how much it is slower than its spec. It is kept in the bucket's hash.
--
-- KEYS   bucket    hash: factor, cut, cut_at, step, spread, spread_end, violations, adjustments, least, greatest
-- ARGV   start: the stretch where it begins

local function stretch(p)
  local slow = p.cut > 0 and p.cut or p.start
  if now < p.spread_end then slow = math.max(slow, p.spread) end
  return math.max(1, slow / p.factor)
end

local function fill_pace(p, factor, cut, spread, spread_end)
  p.factor, p.cut = tonumber(factor) or 1, tonumber(cut) or 0
  p.spread, p.spread_end = tonumber(spread) or 0, tonumber(spread_end) or 0
end

local function read_pace(name, start)
  local kept = redis.call("HMGET", name, "factor", "cut", "spread", "spread_end", "cut_at", "step", "violations",
    "adjustments", "least", "greatest")
  local p = {key = name, start = start, cut_at = tonumber(kept[5]) or 0, step = tonumber(kept[6]) or 0,
    violations = tonumber(kept[7]) or 0, adjustments = tonumber(kept[8]) or 0, least = tonumber(kept[9]) or 0,
    greatest = tonumber(kept[10]) or 0}
  fill_pace(p, kept[1], kept[2], kept[3], kept[4])
  return p
end

local function save_pace(p, ttl_ms)
  redis.call("HSET", p.key, "factor", p.factor, "cut", p.cut, "spread", p.spread, "spread_end", p.spread_end,
    "cut_at", p.cut_at, "step", p.step, "violations", p.violations, "adjustments", p.adjustments,
    "least", p.least, "greatest", p.greatest)
  keep(p.key, p.factor == 1 and ttl_ms or math.max(ttl_ms, KEPT_FACTOR_US / 1000))
end

local function count_change(p, before)
  local after = stretch(p)
  if after == before then return end
  p.adjustments = p.adjustments + 1
  p.least = math.min(p.least > 0 and p.least or before, before, after)
  p.greatest = math.max(p.greatest, before, after)
end
