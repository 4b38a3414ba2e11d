-- adjust(): run a bucket at a share of its rate, until told otherwise.
--
-- KEYS      bucket
-- numbers   start; factor
-- returns   nothing

local function adjust()
  local b = load_bucket(key())
  b.start, b.ttl = number(), KEPT_FACTOR_US / 1000
  local before = stretch(b)
  b.factor = number()
  count_change(b, before)
  keep_bucket(b)
end
