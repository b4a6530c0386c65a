#!lua
-- include: inbox memory
-- Store envelopes, each judged alone (core/inbox.py accept): checks first, then the entry, then its
-- id; counts last, once for all items of an inbox. An item that fails leaves neither seq nor id.
--
-- ARGV[4..9] max_count max_bytes sender_count sender_bytes ids_per_inbox ids_per_partition
-- ARGV[10] 1 if the clock may be believed; [11] the items, one after another: three lengths, then
-- inbox, facts and wire. One argument: a client that sends three for each item works twice as long.
-- Result, per item: {inbox, 'stored', seq, epoch, fence, node, until}, {inbox, 'dup', seq, epoch},
-- or {inbox, code, record?}. fence is 0 where no session is open, or must read the entry back.
-- 'lost': its id is remembered, but the entry is gone; send it again, marked.
if is_foreign() then return foreign() end

local MAX_COUNT, MAX_BYTES = tonumber(ARGV[4]), tonumber(ARGV[5])
local SENDER_COUNT, SENDER_BYTES = tonumber(ARGV[6]), tonumber(ARGV[7])
local MAX_IDS, ALL_IDS, CLOCK_OK = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
local FACTS = '>c8BI4i8i8c16c32'
local SHEDDERS = 16   -- how many of those that remember most are asked to forget

local boxes, news, changed = {}, {}, false

local function box_of(inbox)
  local box = boxes[inbox]
  if box == nil then
    box = load_box(inbox) or false
    boxes[inbox] = box
  end
  return box
end

local function elsewhere(inbox)
  local record = redis.call('HMGET', key('record', inbox), 'home', 'jws')
  if record[1] == '0' then return {inbox, 'moved', record[2]} end
  return {inbox, 'unknown_inbox'}
end

local function over_quota(box, quota, size)
  if box.count >= MAX_COUNT or box.bytes + size > MAX_BYTES then return 'inbox_full' end
  if quota[1] >= SENDER_COUNT or quota[2] + size > SENDER_BYTES then return 'sender_quota' end
  return nil
end

local function count_refusal(box)
  local k = key('inbox', box.inbox)
  local refused = redis.call('HGET', k, 'refused')
  local r = refused and numbers(refused, '^(%d+) (%d+) (%d+)$') or {0, NOW, NOW}
  redis.call('HSET', k, 'refused', string.format('%.0f %.0f %.0f', r[1] + 1, r[2], NOW))
  changed = true
end

-- Room in this inbox's memory of ids; it sheds its own oldest hours.
local function has_own_room(box)
  while box.ids >= MAX_IDS do
    if not shed(box) then return false end
    box.is_dirty, changed = true, true
  end
  return true
end

-- Room in the budget of all: the inbox that remembers most gives way first (R3).
local function has_room(box)
  while IDS >= ALL_IDS do
    local done = false
    for _, inbox in ipairs(redis.call('ZREVRANGE', PREFIX .. 'memory', 0, SHEDDERS - 1)) do
      local other = inbox == box.inbox and box or box_of(inbox)
      if other and shed(other) then
        other.is_dirty, done, changed = true, true, true
        break
      end
    end
    if not done then return false end
  end
  return true
end

local function objection(box, item, quota)
  if not box.home then return 'moved' end
  if item.expires <= NOW then
    -- a clock that is in doubt must never say "expired"
    return CLOCK_OK and 'expired' or 'clock_in_doubt'
  end
  if item.hour <= box.floor then return 'stale_id' end
  local no = over_quota(box, quota, item.size)
  if no then
    count_refusal(box)
    return no
  end
  if not has_own_room(box) then return 'overloaded' end
  if not has_room(box) then return 'overloaded' end
  return nil
end

-- Entry and indexes; undone as a whole where one of them is not what it should be.
local function write_entry(box, seq, item, facts, wire, is_new_hour)
  local expiry, hours = key('expiry', box.inbox), key('hours', box.inbox)
  local due = item.expires + GRACE_S
  if due < box.due then
    redis.call('ZADD', PREFIX .. 'due', 'LT', due, box.inbox)
    box.due = due
  end
  redis.call('ZADD', expiry, item.expires, seq)
  local failed
  if is_new_hour then
    local done = redis.pcall('ZADD', hours, item.hour, item.hour)
    failed = type(done) == 'table' and done.err
  end
  if not failed then
    local done = redis.pcall('XADD', key('stream', box.inbox), string.format('%.0f-0', seq), 'm',
      facts, 'w', wire)
    failed = type(done) == 'table' and done.err
  end
  if failed then
    redis.pcall('ZREM', expiry, seq)
    if is_new_hour then redis.pcall('ZREM', hours, item.hour) end
    error(failed)
  end
end

local function store(box, item, facts, wire, quota, newest, is_known)
  local seq = box.last + 1
  write_entry(box, seq, item, facts, wire, not newest)
  -- from here on nothing can fail: both hashes were read as hashes in this same script
  box.last, box.count, box.bytes = seq, box.count + 1, box.bytes + item.size
  if not is_known then
    box.ids, IDS = box.ids + 1, IDS + 1
  end
  quota[1], quota[2] = quota[1] + 1, quota[2] + item.size
  box.touched[item.sender], box.is_dirty = quota, true
  redis.call('HSET', ids_key(box.inbox, item.hour), item.dedupe,
    struct.pack(SEEN, 'S', seq, item.eid16), 'x', math.max(tonumber(newest or 0), item.expires))
  changed = true
  if box.ids % MEMORY_STEP == 0 then rank_memory(box) end
  return seq
end

local function announce(box, seq, item)
  if not box.open then return {box.inbox, 'stored', seq, box.epoch, 0, '', 0} end
  -- a marked entry must be read back with its mark, never handed over from memory
  local is_marked = item.marked or seq <= math.max(box.handed, box.taken) or
    item.created < box.mark_before
  if is_marked or box.node ~= NODE then
    if not box.is_news then note(news, box.node, box.inbox) end
    box.is_news = true
  end
  if is_marked then return {box.inbox, 'stored', seq, box.epoch, 0, '', 0} end
  return {box.inbox, 'stored', seq, box.epoch, box.fence, box.node, box.until_at}
end

local function accept(inbox, facts, wire)
  local box = box_of(inbox)
  if not box then return elsewhere(inbox) end
  local _, flags, hour, created, expires, dedupe, eid, at = struct.unpack(FACTS, facts)
  local item = {hour = hour, created = created, expires = expires, dedupe = dedupe,
    size = #wire, marked = flags >= 2,
    eid16 = string.sub(eid, 1, 16), sender = string.sub(facts, at)}
  local known = redis.call('HMGET', ids_key(inbox, hour), dedupe, 'x')
  if known[1] then
    local fate, seq, eid16 = struct.unpack(SEEN, known[1])
    if eid16 ~= item.eid16 then return {inbox, 'replayed'} end
    if fate ~= 'S' or is_live(inbox, seq) then return {inbox, 'dup', seq, box.epoch} end
    -- the store lost it: no receipt for what is nowhere; kept anew, perhaps shown before
    if not item.marked then return {inbox, 'lost'} end
  end
  local quota = quota_of(box, item.sender)
  local no = objection(box, item, quota)
  if no == 'moved' then return elsewhere(inbox) end
  if no then return {inbox, no} end
  -- shedding may have dropped this very hour
  local newest = known[2] and redis.call('HGET', ids_key(inbox, hour), 'x')
  local seq = store(box, item, facts, wire, quota, newest, newest and known[1])
  return announce(box, seq, item)
end

-- Counts are written once for all items of an inbox.
local function write_counts(box)
  local fields = {'counts', counts_of(box)}
  for sender, quota in pairs(box.touched) do
    fields[#fields + 1] = 'q:' .. sender
    fields[#fields + 1] = string.format('%.0f %.0f', quota[1], quota[2])
  end
  redis.call('HSET', key('inbox', box.inbox), unpack(fields))
end

local replies, blob, at = {}, ARGV[11], 1

local function next_part(size)
  at = at + size
  return string.sub(blob, at - size, at - 1)
end

while at <= #blob do
  local inbox_size, facts_size, wire_size
  inbox_size, facts_size, wire_size, at = struct.unpack('>I2I2I4', blob, at)
  local inbox = next_part(inbox_size)
  local facts = next_part(facts_size)
  local ok, reply = pcall(accept, inbox, facts, next_part(wire_size))
  if not ok then
    reply = {inbox, 'failed', type(reply) == 'table' and reply.err or tostring(reply)}
  end
  replies[#replies + 1] = reply
end
for _, box in pairs(boxes) do
  if box and box.is_dirty then write_counts(box) end
end
wake(news)
if changed then return committed(replies) end
return unchanged(replies)
