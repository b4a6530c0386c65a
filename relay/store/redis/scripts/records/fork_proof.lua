#!lua flags=no-writes
-- include: inbox
-- Two records of one kv and seq that an agent has signed.
--
-- ARGV[4] owner. Result: {} or {jws, jws}.
if is_foreign() then return foreign() end
return unchanged(redis.call('LRANGE', key('evidence', ARGV[4]), 0, 1))
