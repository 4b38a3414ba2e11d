-- What every script starts with: one clock, and the numbers it is told.
--
-- ARGV[1]   who asks, for the transitions that this causes
-- ARGV[2]   numbers, packed as doubles. The first is the time in µs, or 0 for the time of Redis (tests pass it);
--           then what each script says under "numbers"
-- ARGV[3]…  what each script says under "texts"
--
-- Names in capitals are constants: scripts.py puts their values in their place. What is kept is packed as
-- layout.py says, which defines load_… and save_… for each kind.

local call, pack, unpack = redis.call, struct.pack, struct.unpack
local actor, figures, key_at, text_at = ARGV[1], ARGV[2], 0, 2
local now, at = unpack("<d", figures)
if now == 0 then
  local time = call("TIME")
  now = time[1] * 1000000 + time[2]
end

-- What is kept, unless it has another layout; then it may not even be a string.
local function fetch(name)
  local raw = redis.pcall("GET", name)
  if type(raw) == "string" and string.byte(raw) == LAYOUT then return raw end
end

