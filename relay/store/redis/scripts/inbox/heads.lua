#!lua flags=no-writes
-- include: inbox
-- Fence, epoch and head of many inboxes, for nodes that poll.
--
-- ARGV[4...] inboxes. Result, per inbox: {inbox, 'head', fence, epoch, last, 1 if nobody
-- reads it as its agent}, {inbox, 'none'}, or
-- {inbox, 'stale'}: it must be renewed first, which a reader cannot.
if is_foreign() then return foreign() end

local replies = {}
for i = 4, #ARGV do
  local box = read_box(ARGV[i])
  if not box then
    replies[#replies + 1] = {ARGV[i], 'none'}
  elseif box.generation ~= GENERATION then
    replies[#replies + 1] = {ARGV[i], 'stale'}
  else
    replies[#replies + 1] = {ARGV[i], 'head', box.fence, box.epoch, box.last,
      (box.home and not box.held) and 0 or 1}
  end
end
return unchanged(replies)
