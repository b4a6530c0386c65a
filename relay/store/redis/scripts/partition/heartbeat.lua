#!lua flags=allow-oom
-- Say that a node lives, and which nodes do, by the store's clock.
--
-- KEYS[1] relay:nodes. ARGV[1] node, [2] seconds until its heartbeat lapses. Result: {nodes...}
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
return redis.call('ZRANGE', KEYS[1], 0, -1)
