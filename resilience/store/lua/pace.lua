-- The pace of a bucket (layout.py): by how much it is slower than its spec. `start` is the stretch where it begins.

local function stretch(b)
  local slow = b.cut > 0 and b.cut or b.start
  if now < b.spread_end then slow = math.max(slow, b.spread) end
  return math.max(1, slow / b.factor)
end

-- A rate set by hand outlasts a quiet limit.
local function keep_bucket(b)
  b.kept = now
  save_bucket(b, (b.factor == 1 and b.ttl or math.max(b.ttl, KEPT_FACTOR_US / 1000)) + RENEW_MS)
end

local function count_change(b, before)
  local after = stretch(b)
  if after == before then return end
  b.adjustments = b.adjustments + 1
  b.least = math.min(b.least > 0 and b.least or before, before, after)
  b.greatest = math.max(b.greatest, before, after)
end
