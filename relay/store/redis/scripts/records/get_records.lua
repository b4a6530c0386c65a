#!lua flags=no-writes
-- include: inbox records
-- The newest endpoint records held of agents.
--
-- ARGV[4...] owners. Result, per owner: {owner, text or ''}.
if is_foreign() then return foreign() end

local replies = {}
for i = 4, #ARGV do
  replies[#replies + 1] = {ARGV[i], redis.call('GET', record_key(ARGV[i])) or ''}
end
return unchanged(replies)
