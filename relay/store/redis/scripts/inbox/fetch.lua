#!lua flags=allow-oom
-- include: inbox memory outbox entries page
-- Read from the cursor and write down how far, for a session without a connection (§6).
--
-- ARGV[4] inbox, [5] fence, [6] node, [7] until, [8] count, [9] bytes, [10] 1 if the clock may be
-- believed. Result as of read.lua; the marks are those of before this read.
if is_foreign() then return foreign() end

local box = load_box(ARGV[4])
if not box then return unchanged({ARGV[4], 'inbox_reset'}) end
local no = fenced(box, tonumber(ARGV[5]))
if no then return unchanged({ARGV[4], no}) end
local page = page_of(box, box.cursor, tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1')
local reply = page_reply(box, page)
-- an agent that waits asks again and again
local is_as_before = box.node == ARGV[6] and box.until_at == tonumber(ARGV[7])
if is_as_before and box.taken >= page[2] then return unchanged(reply) end
box.node, box.until_at = ARGV[6], tonumber(ARGV[7])
box.taken = math.max(box.taken, page[2])
write_box(box)
return committed(reply)
