#!lua flags=allow-oom
-- include: inbox rules
-- Add whom an agent took envelopes from elsewhere (reference/rules.py learn); its own word here stands. What
-- it writes is bounded.
--
-- ARGV[4] inbox, [5] most of allowed and of denied each, [6] most contacts, [7] first contact, [8] how many
-- are allowed, [9] how many are denied, [10...] these, then contacts, the longest known first.
-- Result: {inbox}
if is_foreign() then return foreign() end

local inbox, most, most_contacts = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('EXISTS', key('inbox', inbox)) == 0 then return unchanged({inbox}) end
local FIRST = 10
local k, listed, counts, policy = known_key(inbox), {}, {A = 0, D = 0, C = 0}, 'accept'
local flat = redis.call('HGETALL', k)
for i = 1, #flat, 2 do
  if flat[i] == '*' then
    policy = flat[i + 1]
  elseif flat[i] ~= '#' then
    listed[flat[i]] = string.sub(flat[i + 1], 1, 1)
    counts[listed[flat[i]]] = counts[listed[flat[i]]] + 1
  end
end

local function put(other, mark, value)
  redis.call('HSET', k, other, value)
  if listed[other] then counts[listed[other]] = counts[listed[other]] - 1 end
  listed[other], counts[mark] = mark, counts[mark] + 1
end

local function learn(from, to, mark)
  for i = from, to do
    local is_listed = listed[ARGV[i]] == 'A' or listed[ARGV[i]] == 'D'
    if not is_listed and counts[mark] < most then put(ARGV[i], mark, mark) end
  end
end

local denied = FIRST + tonumber(ARGV[8])
local contacts = denied + tonumber(ARGV[9])
learn(FIRST, denied - 1, 'A')
learn(denied, contacts - 1, 'D')
for i = #ARGV, contacts, -1 do
  if not listed[ARGV[i]] and counts.C < most_contacts then
    put(ARGV[i], 'C', string.format('C%.0f', math.max(NOW - CONTACT_FRESH_S - (#ARGV - i), 0)))
  end
end
if policy == 'accept' and ARGV[7] ~= policy then redis.call('HSET', k, '*', ARGV[7]) end
write_sizes(inbox, counts.A, counts.D, counts.C)
return committed({inbox})
