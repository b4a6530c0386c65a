#!lua flags=allow-oom
-- Whose store this is: the first relay that asks has it, with the partitions it wants. May run when
-- memory is full: a relay that cannot start drains nothing.
--
-- KEYS[1] relay:store. ARGV[1] relay DID, [2] partitions. Result: {did, partitions, time or ''}
if redis.call('HSETNX', KEYS[1], 'did', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'partitions', ARGV[2])
end
local s = redis.call('HMGET', KEYS[1], 'did', 'partitions', 'time')
return {s[1], tonumber(s[2]), s[3] or ''}
