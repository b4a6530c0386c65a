#!lua flags=allow-oom
-- include: inbox
-- Batches of bounce intents that are due, one a sender, frozen: a repeat gives the same (R6).
--
-- frozen:<sender>  list: decided_at, token, intents...
-- ARGV[4] most intents of a batch. Result: {sender, decided_at, token, intents...} each.
if is_foreign() then return foreign() end

local SENDERS = 64
local bounces = PREFIX .. 'bounces'
local precise = NOW + tonumber(clock[2]) / 1000000

local function freeze(sender)
  local waiting = key('bounce', sender)
  local due = redis.call('ZRANGEBYSCORE', waiting, '-inf', NOW, 'LIMIT', 0, ARGV[4])
  if #due == 0 then return end
  redis.call('ZREM', waiting, unpack(due))
  local token = redis.sha1hex(table.concat({sender, clock[1], clock[2], unpack(due)}, '|'))
  redis.call('RPUSH', key('frozen', sender), NOW, token, unpack(due))
end

local function settle(sender)
  local first = redis.call('ZRANGE', key('bounce', sender), 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', bounces, first[2], sender)
  else
    redis.call('ZREM', bounces, sender)
  end
end

local batches = {}
local senders = redis.call('ZRANGEBYSCORE', bounces, '-inf', precise, 'LIMIT', 0, SENDERS)
for _, sender in ipairs(senders) do
  local frozen = key('frozen', sender)
  if redis.call('EXISTS', frozen) == 0 then freeze(sender) end
  local batch = redis.call('LRANGE', frozen, 0, -1)
  if #batch == 0 then
    settle(sender)
  else
    -- to the back of the line: one that cannot be delivered must not keep the others from it
    redis.call('ZADD', bounces, precise, sender)
    table.insert(batch, 1, sender)
    batches[#batches + 1] = batch
  end
end
if #senders == 0 then return unchanged(batches) end
return committed(batches)
