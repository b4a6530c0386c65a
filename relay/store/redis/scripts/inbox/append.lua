#!lua
-- include: inbox memory outbox rules records
-- Store envelopes, each judged alone (reference/inbox.py accept): checks first, then the entry, then its
-- id; counts last, once for all items of an inbox. An item that fails leaves neither seq nor id.
--
-- ARGV[4..11] max_count max_bytes sender_count sender_bytes stranger_count stranger_bytes
-- ids_per_inbox ids_per_partition, [12] 1 if the clock may be believed; [13..15] count bytes shares of
-- an outbox; [16] the items, one after another: 1 if it is barred to strangers, and 2 if it moves with
-- its inbox; four lengths, then
-- inbox, peer that it may wait for, facts and wire. One argument: a client that sends four for each
-- item works twice as long.
-- Result, per item: {inbox, 'stored', seq, epoch, fence, node, until, 1 if of a stranger},
-- {inbox, 'dup', seq, epoch}, or {inbox, code, record?}; {inbox, 'closed', code, seconds} as a peer
-- refused. Where it waits for a courier, or went on, 'waits' and 'gone' stand for 'stored' and 'dup'.
-- fence is 0 where no session is open, or
-- must read the entry back.
-- 'lost': it may have been shown before: the entry is gone, or comes back, or it is too old for that
-- to be told; send it again, marked.
if is_foreign() then return foreign() end

local MAX_COUNT, MAX_BYTES = tonumber(ARGV[4]), tonumber(ARGV[5])
local SENDER_COUNT, SENDER_BYTES = tonumber(ARGV[6]), tonumber(ARGV[7])
local STRANGER_COUNT, STRANGER_BYTES = tonumber(ARGV[8]), tonumber(ARGV[9])
local MAX_IDS, ALL_IDS, CLOCK_OK = tonumber(ARGV[10]), tonumber(ARGV[11]), ARGV[12] == '1'
local OUTBOX_COUNT, OUTBOX_BYTES, SHARES = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local STRANGERS = '*'    -- what waits of all of them is kept like a sender's quota

local boxes, news, changed = {}, {}, false

local function box_of(inbox)
  local box = boxes[inbox]
  if box == nil then
    box = load_box(inbox) or false
    boxes[inbox] = box
  end
  return box
end

-- The inbox of an agent whose record names other homes, made when something is to wait there.
local function away_box_of(inbox)
  local record = head_of(inbox)
  if not record or record.home then return nil end
  local box = new_box(inbox, '0')
  box.is_new = true
  boxes[inbox] = box
  return box
end

local function elsewhere(inbox)
  local text = redis.call('GET', record_key(inbox))
  local record = text and parse_row(text)
  if record and not record.home then return {inbox, 'moved', jws_of(text)} end
  -- its agent is coming home, and a step of the hand-off says so in a moment
  if boxes[inbox] then return {inbox, 'migrating'} end
  return {inbox, 'unknown_inbox'}
end

-- include: quotas enqueue recall

local function ruled_out(box, item)
  -- the relay's own word, a bounce, is nobody's to refuse, and an agent may write to itself;
  -- another relay's bounce passes the rules, too, but it is a stranger's
  if item.sender == box.inbox or not (item.bounces or item.via) then return nil end
  local standing = standing_of(box, item.sender)
  item.is_stranger = standing ~= 'known'
  if not item.bounces then return nil end
  if item.moving then return nil end
  if standing == 'stranger' and item.barred then return 'rate_limited' end
  if standing == 'blocked' or standing == 'not_admitted' then return standing end
  return nil
end

local function objection(box, item, quota, is_known)
  if not box.home and item.peer == '' then return 'moved' end
  local barred = box.home and ruled_out(box, item)
  if barred then return barred end
  if item.expires <= NOW then
    -- a clock that is in doubt must never say "expired"
    return CLOCK_OK and 'expired' or 'clock_in_doubt'
  end
  if item.hour <= box.floor and not item.moving then return 'stale_id' end
  local no
  if not box.home then
    no = over_bounds(box, item, quota)
  elseif item.moving then
    no = over_twice(box, item.size)
  else
    no = over_quota(box, item, quota)
  end
  if no then
    if box.home then count_refusal(box) end
    return no
  end
  if is_known then return nil end
  if not has_own_room(box, item) then return 'overloaded' end
  if not has_room(box, item) then return 'overloaded' end
  return nil
end

-- Entry and indexes; undone as a whole where one of them is not what it should be.
local function write_entry(box, seq, item, facts, wire, is_new_hour)
  local expiry, hours = key('expiry', box.inbox), key('hours', box.inbox)
  local due = item.expires + BOUNCE_GRACE_S
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
    local done = redis.pcall('XADD', key('stream', box.inbox), string.format('%.0f-0', seq),
      item.is_stranger and 's' or 'm', facts, 'w', wire)
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
  if not box.home then become_due(box) end
  write_entry(box, seq, item, facts, wire, not newest)
  if not box.home then join_outbox(box, item) end
  -- from here on nothing can fail: both hashes were read as hashes in this same script
  box.last, box.count, box.bytes = seq, box.count + 1, box.bytes + item.size
  if not is_known then
    box.ids, IDS = box.ids + 1, IDS + 1
  end
  quota[1], quota[2] = quota[1] + 1, quota[2] + item.size
  box.touched[item.sender], box.is_dirty = quota, true
  if item.is_stranger then
    local all = quota_of(box, STRANGERS)
    all[1], all[2] = all[1] + 1, all[2] + item.size
    box.touched[STRANGERS] = all
    if item.via then
      local brought = quota_of(box, STRANGERS .. item.via)
      brought[1], brought[2] = brought[1] + 1, brought[2] + item.size
      box.touched[STRANGERS .. item.via] = brought
    end
  end
  redis.call('HSET', ids_key(box.inbox, item.hour), item.dedupe,
    struct.pack(SEEN, 'S', seq, item.eid16), 'x', math.max(tonumber(newest or 0), item.expires))
  changed = true
  if item.moving then count_in(box, 'kept') end
  if box.ids % MEMORY_STEP == 0 then rank_memory(box) end
  return seq
end

local function announce(box, seq, item)
  local is_stranger, how = item.is_stranger and 1 or 0, box.home and 'stored' or 'waits'
  if not box.open then return {box.inbox, how, seq, box.epoch, 0, '', 0, is_stranger} end
  -- a marked entry must be read back with its mark, never handed over from memory
  local marked = is_marked(box, seq, item.marked, item.created)
  if marked or box.node ~= NODE then
    if not box.is_news then note(news, box.node, box.inbox) end
    box.is_news = true
  end
  if marked then return {box.inbox, how, seq, box.epoch, 0, '', 0, is_stranger} end
  return {box.inbox, how, seq, box.epoch, box.fence, box.node, box.until_at, is_stranger}
end

local function accept(inbox, peer, facts, wire, how)
  local box = box_of(inbox) or (peer ~= '' and away_box_of(inbox))
  if not box then return elsewhere(inbox) end
  local _, flags, hour, created, expires, dedupe, eid, at = struct.unpack(FACTS, facts)
  local item = {hour = hour, created = created, expires = expires, dedupe = dedupe,
    size = #wire, bounces = flags % 2 == 1, marked = flags % 4 >= 2, barred = how % 2 == 1, moving = how >= 2,
    eid16 = string.sub(eid, 1, 16), sender = string.sub(facts, at), peer = peer}
  if flags >= 4 then item.sender, item.via = string.match(item.sender, '^(%S+) (%S+)$') end
  local known = redis.call('HMGET', ids_key(inbox, hour), dedupe, 'x')
  local recalled = recall(box, item, known[1])
  if recalled then return recalled end
  local quota = quota_of(box, item.sender)
  local no = objection(box, item, quota, known[1])
  if no == 'moved' then return elsewhere(inbox) end
  if no == 'closed' then
    return {inbox, no, away_of(box).closed_code, box.away.closed_until - NOW}
  end
  if no then return {inbox, no} end
  -- shedding may have dropped this very hour
  local newest = known[2] and redis.call('HGET', ids_key(inbox, hour), 'x')
  local seq = store(box, item, facts, wire, quota, newest, newest and known[1])
  return announce(box, seq, item)
end

-- Counts are written once for all items of an inbox.
local function write_counts(box)
  if box.is_new then write_box(box) end
  if box.away and box.away.is_changed then write_away(box) end
  local fields = {'counts', counts_of(box)}
  if box.tally then fields[3], fields[4] = 'tally', tally_of(box) end
  if box.is_remarked then
    fields[#fields + 1] = 'marks'
    fields[#fields + 1] = marks_of(box)
  end
  for sender, quota in pairs(box.touched) do
    fields[#fields + 1] = 'q:' .. sender
    fields[#fields + 1] = string.format('%.0f %.0f', quota[1], quota[2])
  end
  redis.call('HSET', key('inbox', box.inbox), unpack(fields))
end

local replies, blob, at = {}, ARGV[16], 1

local function next_part(size)
  at = at + size
  return string.sub(blob, at - size, at - 1)
end

while at <= #blob do
  local how, inbox_size, peer_size, facts_size, wire_size
  how, inbox_size, peer_size, facts_size, wire_size, at = struct.unpack('>BI2I2I2I4', blob, at)
  local inbox = next_part(inbox_size)
  local peer = next_part(peer_size)
  local facts = next_part(facts_size)
  local ok, reply = pcall(accept, inbox, peer, facts, next_part(wire_size), how)
  if not ok then
    reply = {inbox, 'failed', type(reply) == 'table' and reply.err or tostring(reply)}
  end
  replies[#replies + 1] = reply
end
for _, box in pairs(boxes) do
  if box and box.is_dirty then write_counts(box) end
end
save_outboxes()
wake(news)
if changed then return committed(replies) end
return unchanged(replies)
