-- The gate of a sharer: until when the server wants to hear nothing (layout.py).

local function shut(gate, till)
  if till > gate.till then gate.closed, gate.till = now, till end
end

local function keep_gate(gate)
  save_gate(gate, math.max(0, math.ceil((gate.till - now) / 1000)) + 2 * DAY_MS)
end
