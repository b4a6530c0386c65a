#!lua flags=no-writes
-- include: inbox
-- The newest endpoint record held of an agent.
--
-- ARGV[4] owner. Result: {owner, kv, seq, hash, jws, home} or {owner}.
if is_foreign() then return foreign() end

local r = redis.call('HMGET', key('record', ARGV[4]), 'kv', 'seq', 'hash', 'jws', 'home')
if not r[1] then return unchanged({ARGV[4]}) end
return unchanged({ARGV[4], r[1], r[2], r[3], r[4], r[5]})
