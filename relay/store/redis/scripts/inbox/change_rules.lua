#!lua flags=allow-oom
-- include: inbox rules
-- Change the rules of an inbox, or just read them (reference/inbox.py change_rules, R7).
-- May run when memory is full: who is flooded must be able to say so. What it writes is bounded.
--
-- ARGV[4] inbox, [5] fence, [6] most of allowed and of denied each, [7] first contact or '',
-- [8...] (A, D or - for forget, sender)...
-- Result: {inbox, 'ruled', first contact, contacts, number of allowed, allowed..., denied...} or
-- {inbox, code}
if is_foreign() then return foreign() end

local inbox, most, first_contact = ARGV[4], tonumber(ARGV[6]), ARGV[7]
local box = load_box(inbox)
if not box then return unchanged({inbox, 'inbox_reset'}) end
local no = fenced(box, tonumber(ARGV[5]))
if no then return unchanged({inbox, no}) end

local k = known_key(inbox)
local listed, lists, contacts, policy = {}, {A = {}, D = {}}, 0, 'accept'
local flat = redis.call('HGETALL', k)
for i = 1, #flat, 2 do
  if flat[i] == '*' then policy = flat[i + 1] elseif flat[i] ~= '#' then listed[flat[i]] = flat[i + 1] end
end
local set, gone = {}, {}
for i = 8, #ARGV, 2 do
  local mark, sender = ARGV[i], ARGV[i + 1]
  if mark == '-' and listed[sender] then
    gone[#gone + 1] = sender
    listed[sender] = nil
  elseif mark ~= '-' and listed[sender] ~= mark then
    set[#set + 1], set[#set + 2] = sender, mark
    listed[sender] = mark
  end
end
for sender, mark in pairs(listed) do
  if lists[mark] then table.insert(lists[mark], sender) else contacts = contacts + 1 end
end
if #lists.A > most or #lists.D > most then return unchanged({inbox, 'too_many'}) end

local changed = #set > 0 or #gone > 0
if #gone > 0 then redis.call('HDEL', k, unpack(gone)) end
if #set > 0 then redis.call('HSET', k, unpack(set)) end
if first_contact ~= '' and first_contact ~= policy then
  policy, changed = first_contact, true
  redis.call('HSET', k, '*', policy)
end
local reply = {inbox, 'ruled', policy, contacts, #lists.A}
for _, list in ipairs({lists.A, lists.D}) do
  for _, sender in ipairs(list) do reply[#reply + 1] = sender end
end
if not changed then return unchanged(reply) end
write_sizes(inbox, #lists.A, #lists.D, contacts)
return committed(reply)
