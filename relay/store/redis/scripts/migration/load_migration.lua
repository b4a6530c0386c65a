#!lua flags=no-writes
-- include: inbox records
-- All that a step of a hand-off is judged by.
--
-- ARGV[4] inbox. Result: {inbox, text, holding or '', 1 if it left, record or '', record before it or '',
-- the tally's numbers (lib/inbox.lua) or none, last, count, two records of one seq or none}
if is_foreign() then return foreign() end

local inbox = ARGV[4]
local box = view_box(inbox)
local text = redis.call('HGET', key('inbox', inbox), 'handoff') or ''
return unchanged({inbox, text, box and box.holding or '', box and away_of(box).left_fence > 0 and 1 or 0,
  redis.call('GET', record_key(inbox)) or '', redis.call('GET', former_key(inbox)) or '',
  box and box.tally or {}, box and box.last or 0, box and box.count or 0,
  redis.call('LRANGE', key('evidence', inbox), 0, 1)})
