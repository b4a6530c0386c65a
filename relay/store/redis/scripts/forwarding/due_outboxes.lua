#!lua flags=allow-oom
-- include: inbox outbox
-- Inboxes that are due for a courier or a mover, each lent for a while (reference/inbox.py lend).
--
-- ARGV[4] how many at most, [5] seconds of the lease. Result: {inbox, peer or ''} each.
if is_foreign() then return foreign() end

local now, most, lent, changed = precisely(), tonumber(ARGV[4]), {}, false
local due = redis.call('ZRANGEBYSCORE', PREFIX .. 'outboxes', '-inf', now, 'LIMIT', 0, most)
for _, inbox in ipairs(due) do
  local box = load_box(inbox)
  changed = true
  if box and ((not box.home and box.count > 0) or has_work(box)) then
    set_due(box, now + tonumber(ARGV[5]))
    lent[#lent + 1] = {inbox, away_of(box).peer or ''}
  else
    redis.call('ZREM', PREFIX .. 'outboxes', inbox)
  end
end
if changed then return committed(lent) end
return unchanged(lent)
