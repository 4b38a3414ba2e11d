-- adjust(): run a bucket at a share of its rate, until told otherwise.
--
-- KEYS      bucket
-- ARGV      start; factor
-- returns   nothing

local function adjust()
  local p = read_pace(key(), number())
  local before = stretch(p)
  p.factor = number()
  count_change(p, before)
  save_pace(p, KEPT_FACTOR_US / 1000)
end
