#!lua flags=no-writes
-- include: inbox records
-- Whose records changed after some change, oldest first, each with its order now.
--
-- ARGV[4] token of the generation that [5], the change, is of; '' for all. [6] how many at most.
-- Result: {token now, 1 if there is more, {owner, change, kv, seq, hash}...}, without the last three
-- where nothing is held any more, or what is held is over; {token now} alone where the token is another: ask for all.
if is_foreign() then return foreign() end

if ARGV[4] ~= '' and ARGV[4] ~= lineage[1] then return unchanged({lineage[1]}) end
local most = tonumber(ARGV[6])
local found = redis.call('ZRANGEBYSCORE', PREFIX .. 'changed', '(' .. ARGV[5], '+inf',
  'WITHSCORES', 'LIMIT', 0, most + 1)
local reply = {lineage[1], #found > 2 * most and 1 or 0}
for i = 1, math.min(#found, 2 * most), 2 do
  local row = not redis.call('ZSCORE', PREFIX .. 'gone', found[i]) and head_of(found[i])
  if row then
    reply[#reply + 1] = {found[i], found[i + 1], row.kv, row.seq, row.hash}
  else
    reply[#reply + 1] = {found[i], found[i + 1]}
  end
end
return unchanged(reply)
