#!lua flags=allow-oom
-- include: inbox records
-- Forget records that are over for long, of agents that have no inbox here (PROTOCOL.md §7.3). Of
-- those that have one the record stays, but no reader of the log is told of it any more: no relay
-- would take it, so it must not be offered.
-- An index of all ends would cost as much as the change log; so the log is walked instead.
--
-- ARGV[4] the change to go on after, [5] how many are looked at, [6] how long after its exp a
-- record is over, [7] how long readers of the log are told that one is gone.
-- Result: {how many, change to go on after; 0 at the end}.
if is_foreign() then return foreign() end

local most, over_before = tonumber(ARGV[5]), NOW - tonumber(ARGV[6])
local gone_before, purged, changed = NOW - tonumber(ARGV[7]), 0, false

local function is_over(owner, row)
  if not row or row.expires == 0 or row.expires > over_before then return false end
  return not redis.call('ZSCORE', PREFIX .. 'gone', owner)
end

local function forget(owner, row)
  redis.call('UNLINK', record_key(owner), key('evidence', owner), former_key(owner))
  count_introduced(row.introducer, -1)
  purged = purged + 1
end

for _, owner in ipairs(redis.call('ZRANGEBYSCORE', PREFIX .. 'gone', '-inf', gone_before,
  'LIMIT', 0, most)) do
  redis.call('ZREM', PREFIX .. 'changed', owner)
  redis.call('ZREM', PREFIX .. 'gone', owner)
  changed = true
end

local found = redis.call('ZRANGEBYSCORE', PREFIX .. 'changed', '(' .. ARGV[4], '+inf',
  'WITHSCORES', 'LIMIT', 0, most)
for i = 1, #found, 2 do
  local row = head_of(found[i])
  if is_over(found[i], row) then
    if redis.call('EXISTS', key('inbox', found[i])) == 0 then forget(found[i], row) end
    redis.call('ZADD', PREFIX .. 'gone', NOW, found[i])
    note_change(found[i])
    changed = true
  end
end
local result = {purged, #found == 2 * most and found[#found] or '0'}
if changed then return committed(result) end
return unchanged(result)
