#!lua flags=allow-oom
-- include: inbox memory outbox entries
-- End entries that were never handed to the live session; each is looked at again here.
--
-- ARGV[4] inbox, [5] E or C, [6] 1 if the clock may be believed, [7...] seqs.
-- Result: {inbox, how many ended}
if is_foreign() then return foreign() end

local box, ended = load_box(ARGV[4]), 0
if not box then return unchanged({ARGV[4], 0}) end
for i = 7, #ARGV do
  if conclude(box, tonumber(ARGV[i]), ARGV[5], ARGV[6] == '1') then ended = ended + 1 end
end
if ended == 0 then return unchanged({ARGV[4], 0}) end
save(box)
return committed({ARGV[4], ended})
