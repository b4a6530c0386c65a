#!lua flags=allow-oom
-- include: inbox
-- Forget a batch of bounces that was delivered; a repeat, or another token, does nothing.
--
-- ARGV[4] sender, [5] token. Result: 1 if it was there.
if is_foreign() then return foreign() end

local frozen, bounces = key('frozen', ARGV[4]), PREFIX .. 'bounces'
if redis.call('LINDEX', frozen, 1) ~= ARGV[5] then return unchanged(0) end
redis.call('UNLINK', frozen)
local first = redis.call('ZRANGE', key('bounce', ARGV[4]), 0, 0, 'WITHSCORES')
if first[2] then
  redis.call('ZADD', bounces, first[2], ARGV[4])
else
  redis.call('ZREM', bounces, ARGV[4])
end
return committed(1)
