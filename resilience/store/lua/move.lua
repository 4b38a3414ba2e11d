-- move(): put a circuit into a state by hand. The actor of the transition is who does it.
--
-- KEYS      events; circuit, permits; override (hash: era, by, why, since)
-- texts     why
-- numbers   the circuit (circuit.lua); state; until_us (0: no end known, or the usual time of an open one);
--           only_if_missing
-- returns   {now, changes}
--
-- What is restored to a Redis that knows nothing of the circuit must not undo what somebody did since.

local function move()
  events = key()
  local c = read_circuit(0)
  local override, state, till, why, changes = key(), number(), number(), text(), {}
  local only_if_missing = number() == 1
  if only_if_missing and not c.missing then return {now, changes} end
  if only_if_missing and state == CLOSED then
    c.known = 1
    keep_circuit(c)
    return {now, changes}
  end
  if state == OPEN then
    c.open = policy(c).open
    if till == 0 then till = now + c.open end
  elseif state == CLOSED then
    c.failures, c.open, c.closed = 0, 0, 0
  end
  turn(c, state, till, why, changes)
  if state == FORCED_OPEN or state == DISABLED then
    redis.call("HSET", override, "era", c.era, "by", actor, "why", why, "since", now)
    keep(override, redis.call("PTTL", c.key))
  end
  return {now, changes}
end
