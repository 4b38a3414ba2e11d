-- allot(): so much more of a budget is written down; nothing more when nothing is left.
--
-- KEYS      window
-- numbers   the window (window.lua); begin_us; amount
-- returns   nothing

local function allot()
  local w = read_window()
  local begin, amount = number(), number()
  if begin ~= w.begin then return end
  w.written = w.written + amount
  if amount == 0 then w.used = math.max(w.used, w.amount) end
  keep_window(w)
end
