#!lua flags=allow-oom
-- include: inbox rules
-- Note that agents have written to others: contacts (reference/rules.py meet, R7). Repeating it is harmless.
-- May run when memory is full: its envelope is stored, so its sender must get the receipt.
--
-- ARGV[4] most contacts of an inbox, [5...] (inbox, other)...
-- Result, per pair: {inbox, 1}, or {inbox, 0} where there is no such inbox
if is_foreign() then return foreign() end

local MOST = tonumber(ARGV[4])
local changed = false

local function make_room(k, sizes)
  local flat, found = redis.call('HGETALL', k), {}
  for i = 1, #flat, 2 do
    local at = string.match(flat[i + 1], '^C(%d+)$')
    if at and flat[i] ~= '#' and flat[i] ~= '*' then found[#found + 1] = {tonumber(at), flat[i]} end
  end
  table.sort(found, function(one, other)
    if one[1] ~= other[1] then return one[1] < other[1] end
    return one[2] < other[2]
  end)
  local gone = {}
  for i = 1, math.min(#found, math.max(1, math.floor(MOST / CONTACT_EVICTION_SHARE))) do gone[i] = found[i][2] end
  redis.call('HDEL', k, unpack(gone))
  sizes[3] = sizes[3] - #gone
end

local function meet(inbox, other)
  if redis.call('EXISTS', key('inbox', inbox)) == 0 then return {inbox, 0} end
  local k = known_key(inbox)
  local found = redis.call('HMGET', k, other, '#')
  local noted = found[1] and string.match(found[1], '^C(%d+)$')
  if found[1] and (not noted or NOW - tonumber(noted) < CONTACT_FRESH_S) then return {inbox, 1} end
  if not noted then
    local sizes = numbers(found[2] or '0 0 0', '^(%d+) (%d+) (%d+)$')
    if sizes[3] >= MOST then make_room(k, sizes) end
    write_sizes(inbox, sizes[1], sizes[2], sizes[3] + 1)
  end
  redis.call('HSET', k, other, string.format('C%.0f', NOW))
  changed = true
  return {inbox, 1}
end

local replies = {}
for i = 5, #ARGV, 2 do replies[#replies + 1] = meet(ARGV[i], ARGV[i + 1]) end
if changed then return committed(replies) end
return unchanged(replies)
