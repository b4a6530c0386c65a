#!lua flags=no-writes
-- include: inbox rules
-- Whom the agent of an inbox takes envelopes from, as it is kept (lib/rules.lua).
--
-- ARGV[4] inbox. Result: {inbox, field, value...}
if is_foreign() then return foreign() end

local reply = redis.call('HGETALL', known_key(ARGV[4]))
table.insert(reply, 1, ARGV[4])
return unchanged(reply)
