#!lua flags=allow-oom
-- include: inbox records
-- Write down anew the records that an earlier version kept as hashes: kv seq hash jws home. May run
-- when memory is full: a store that cannot be read never drains, and a text is smaller.
--
-- ARGV[4] 1 where there are no more of them: written down, so that nobody looks again,
-- [5...] owners. Result: how many were written anew.
if is_foreign() then return foreign() end

local adopted = 0
for i = 5, #ARGV do
  local k = record_key(ARGV[i])
  if redis.call('TYPE', k).ok == 'hash' then
    local held = redis.call('HMGET', k, 'home', 'kv', 'seq', 'hash', 'jws')
    redis.call('DEL', k)
    -- it is not known when it expires, and its agent brought it
    redis.call('SET', k, string.format('%s %s %s %s 0 - %s', held[1], held[2], held[3], held[4], held[5]))
    note_change(ARGV[i])
    adopted = adopted + 1
  end
end
if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'records', 'text') end
return committed(adopted)
