#!lua flags=no-writes
-- include: inbox
-- Hand-offs that are open: inboxes of which two relays may still talk.
--
-- handoffs   set: their inboxes
-- Result: {inbox, text}...
if is_foreign() then return foreign() end

local found = {}
for _, inbox in ipairs(redis.call('SMEMBERS', PREFIX .. 'handoffs')) do
  found[#found + 1] = {inbox, redis.call('HGET', key('inbox', inbox), 'handoff') or ''}
end
return unchanged(found)
