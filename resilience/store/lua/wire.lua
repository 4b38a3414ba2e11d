-- What the parts of a script share: KEYS, numbers and texts are read one after the other.

local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end

local function text()
  text_at = text_at + 1
  return ARGV[text_at]
end

local function number()
  local value
  value, at = struct.unpack("<d", figures, at)
  return value
end

local function save(name, packed, ttl_ms)
  if ttl_ms then
    redis.call("SET", name, packed, "PX", ttl_ms)
  else
    redis.call("SET", name, packed, "KEEPTTL")
  end
end

local function keep(name, ttl_ms)
  redis.call("PEXPIRE", name, ttl_ms or DAY_MS)
end
