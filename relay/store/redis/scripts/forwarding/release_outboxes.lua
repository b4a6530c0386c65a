#!lua flags=allow-oom
-- include: inbox outbox
-- A node begins that has the store for itself: whoever was lent something is dead (reference/forwarding.py).
-- What waits by a courier's word for longer than any lease goes on waiting.
if is_foreign() then return foreign() end

local now = precisely()
local lent = redis.call('ZRANGEBYSCORE', PREFIX .. 'outboxes', '(' .. now, now + LEASE_S)
for _, inbox in ipairs(lent) do
  redis.call('ZADD', PREFIX .. 'outboxes', now, inbox)
end
if #lent > 0 then return committed(#lent) end
return unchanged(0)
