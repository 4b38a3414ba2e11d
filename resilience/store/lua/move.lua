-- move(): put a circuit into a state by hand.
--
-- KEYS      circuit, permits
-- ARGV      the circuit (circuit.lua); state; until_us (0: no end known, or the usual time of an open one)
-- returns   {now, changes}, as settle does

local function move()
  local c = read_circuit(0)
  local state, till, changes = text(), number(), {}
  if state == "open" then
    c.open = policy(c).open
    if till == 0 then till = now + c.open end
  elseif state == "closed" then
    c.failures, c.open, c.closed = 0, 0, 0
  end
  c["until"] = till
  turn(c, state, "by hand", changes)
  return {now, changes}
end
