-- What every script starts with: KEYS and ARGV are read one after the other, and there is one clock.
--
-- ARGV[1]   the time in µs, or "" for the time of Redis (tests pass it)
-- ARGV[2]   who asks, for the transitions that this causes

local key_at, arg_at = 0, 0

local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end

local function text()
  arg_at = arg_at + 1
  return ARGV[arg_at]
end

local function number()
  return tonumber(text())
end

local function clock()
  local given = number()
  if given then return given end
  local time = redis.call("TIME")
  return time[1] * 1000000 + time[2]
end

local now = clock()
local actor = text()

local function keep(name, ttl_ms)
  redis.call("PEXPIRE", name, ttl_ms or DAY_MS)
end
