-- retry(): may one more call of the fleet be a retry?
--
-- KEYS      the budget, a string: until when it is used up, µs (as a bucket: now is all of it left)
-- numbers   unit_us, which earns one retry; room_us, which are saved at most; earned_us, which comes in
-- returns   1 and takes one, or 0

local function retry()
  local budget, unit, room, earned = key(), number(), number(), number()
  local used = math.max((tonumber(redis.call("GET", budget)) or 0) - earned, now) + unit
  local allowed = used <= now + room
  if not allowed then used = used - unit end
  redis.call("SET", budget, string.format("%.0f", used), "PX", DAY_MS)
  return allowed and 1 or 0
end
