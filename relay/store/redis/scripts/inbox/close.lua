#!lua flags=allow-oom
-- include: inbox outbox
-- End a session cleanly: the exact last seq handed over is known (R1).
--
-- ARGV[4] inbox, [5] fence, [6] last handed. Result: {inbox, 1 or 0}; 0 if a newer one has it.
if is_foreign() then return foreign() end

local box = load_box(ARGV[4])
if not box or not box.open or box.fence ~= tonumber(ARGV[5]) then
  return unchanged({ARGV[4], 0})
end
box.handed = math.max(box.handed, tonumber(ARGV[6]))
box.open, box.node = false, ''
write_box(box)
if not box.home then set_due(box, math.max(precisely(), away_of(box).deferred)) end
return committed({ARGV[4], 1})
