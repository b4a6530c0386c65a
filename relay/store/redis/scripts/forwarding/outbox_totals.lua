#!lua flags=no-writes
-- include: inbox outbox
-- How much waits for each peer. Result: {peer, envelopes, wire bytes} each.
if is_foreign() then return foreign() end

local totals = {}
for _, peer in ipairs(redis.call('SMEMBERS', PREFIX .. 'outbox_peers')) do
  local all = outbox_of(peer).all
  totals[#totals + 1] = {peer, all[1], all[2]}
end
return unchanged(totals)
