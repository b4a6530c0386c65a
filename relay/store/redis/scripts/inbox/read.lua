#!lua flags=no-writes
-- include: inbox memory outbox entries page
-- Read on after some seq, if the session still has the inbox.
--
-- ARGV[4] inbox, [5] fence, [6] after, [7] count, [8] bytes, [9] 1 if the clock may be believed.
-- Result: {inbox, 'page', epoch, last, marked upto, mark_before, after, upto, entries, ranges,
--          expired},
--         {inbox, code}, or {inbox, 'stale'}: it must be renewed first, which a reader cannot.
if is_foreign() then return foreign() end

local box = read_box(ARGV[4])
if not box then return unchanged({ARGV[4], 'inbox_reset'}) end
if box.generation ~= GENERATION then return unchanged({ARGV[4], 'stale'}) end
local no = fenced(box, tonumber(ARGV[5]))
if no then return unchanged({ARGV[4], no}) end
local page = page_of(box, tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9] == '1')
return unchanged(page_reply(box, page))
