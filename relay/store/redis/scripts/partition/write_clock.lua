#!lua flags=allow-oom
-- Write down the store's clock, for the next start. May run when memory is full, as expiry must.
--
-- KEYS[1] relay:store. ARGV[1] Unix seconds.
return redis.call('HSET', KEYS[1], 'time', ARGV[1])
