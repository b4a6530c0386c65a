#!lua
-- Change one field of a hash, if it still says what was read: what a node decided from it holds.
--
-- KEYS[1] the hash. ARGV[1] field, [2] what was read, '' for nothing, [3] what it says from now on.
-- Result: 1, or 0 where another node was quicker.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
