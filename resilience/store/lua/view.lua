-- view(): how circuits stand. Writes nothing.
--
-- KEYS      circuit and permits for each circuit
-- ARGV      number of circuits and each (circuit.lua)
-- returns   {state, until_us, free permits, failures, successes} for each

local function view()
  local seen = {}
  for i = 1, number() do
    local c = read_circuit(i - 1)
    local is_over = c["until"] > 0 and c["until"] <= now
    if is_over and c.state == "open" then
      seen[i] = {"half_open", 0, policy(c).probes, c.failures, 0}
    elseif is_over then
      seen[i] = {"closed", 0, 0, 0, 0}
    else
      local free = c.state == "half_open" and free_permits(c) or 0
      seen[i] = {c.state, c["until"], free, c.failures, c.good}
    end
  end
  return seen
end
