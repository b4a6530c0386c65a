#!lua flags=allow-oom
-- include: inbox memory outbox entries
-- Begin a new epoch: the store lost something of this inbox, or was rolled back (R5).
--
-- ARGV[4] inbox, [5] epoch in which a hole was seen; another one means: already done.
-- Result: {inbox, 'reset'}
if is_foreign() then return foreign() end

local inbox = ARGV[4]
local stored = read_box(inbox)
if not stored then return unchanged({inbox, 'reset'}) end
local box = load_box(inbox)
if box.epoch ~= ARGV[5] then
  if stored.generation == GENERATION then return unchanged({inbox, 'reset'}) end
  return committed({inbox, 'reset'})
end

-- The entries that are there are the truth; counts and quotas follow from them.
local peer = not box.home and away_of(box).peer
if peer then wait_for(box, nil) end
local known = {}
local function explain(from, to)
  for seq = from, to do known[seq] = true end
end
for _, text in ipairs(redis.call('ZRANGE', key('gaps', inbox), 0, -1)) do
  explain(parse_range(text))
end
for _, field in ipairs(redis.call('HKEYS', key('inbox', inbox))) do
  if string.sub(field, 1, 2) == 'q:' then box.quotas[string.sub(field, 3)] = {0, 0} end
end
box.count, box.bytes = 0, 0
local function charge(sender, size)
  local quota = box.quotas[sender] or {0, 0}
  box.quotas[sender] = {quota[1] + 1, quota[2] + size}
end
each_entry(box, box.cursor + 1, box.last, function(item)
  known[item.seq] = true
  box.count, box.bytes = box.count + 1, box.bytes + item.size
  if not item.garbage then
    charge(item.sender, item.size)
    if item.is_stranger then
      charge('*', item.size)
      if item.via then charge('*' .. item.via, item.size) end
    end
  end
  return false
end)
for seq = box.cursor + 1, box.last do
  if not known[seq] then
    add_range(box, seq, 'C')
    count_in(box, 'C')
  end
end
renew(box, NOW + BOUNCE_GRACE_S)
save(box)
if peer then
  wait_for(box, peer)
  save_outboxes()
end
return committed({inbox, 'reset'})
