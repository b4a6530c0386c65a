-- Entries of an inbox: read one, end one, say so to its sender; ranges of seqs that ended (R5, R6).
--
-- stream:<inbox>   <seq>-0  m = packed facts (relay/store/redis/entries.py), w = wire bytes; s instead
--                  of m: stored as a stranger's, whatever the rules say by now
-- expiry:<inbox>   sorted set: seq -> expires_time
-- due              sorted set: inbox -> when a sweep should look at it, never too late
-- gaps:<inbox>     sorted set: from:to:reason, scored by from
-- bounce:<sender>  sorted set of intents by due time; bounces: sender -> earliest due
-- what the agent itself ended, or what went on to its home: it need not be told again
local PASSED = {A = true, R = true, M = true}
local RANGE_OF = {W = 'M'}   -- a fate's range is called like the fate, but what was forwarded has moved
local CHUNK = 16                   -- entries read at once: few calls, and few bytes too many

local function parse_entry(entry)
  local fields = entry[2]
  local facts, wire = fields[2], fields[4]
  local item = {seq = tonumber(string.match(entry[1], '^%d+')), size = wire and #wire or 0}
  if (fields[1] ~= 'm' and fields[1] ~= 's') or not wire or #facts < FACTS_BYTES then
    item.garbage = true
    return item
  end
  item.is_stranger = fields[1] == 's'
  local _, flags, hour, created, expires, dedupe, eid, at = struct.unpack(FACTS, facts)
  item.bounces, item.marked = flags % 2 == 1, flags % 4 >= 2
  item.hour, item.created, item.expires, item.dedupe = hour, created, expires, dedupe
  item.eid, item.eid16, item.sender = eid, string.sub(eid, 1, 16), string.sub(facts, at)
  if flags >= 4 then item.sender, item.via = string.match(item.sender, '^(%S+) (%S+)$') end
  return item
end

local function entry_at(box, seq)
  local id = string.format('%.0f-0', seq)
  local found = redis.call('XRANGE', key('stream', box.inbox), id, id)
  return found[1] and parse_entry(found[1]) or nil
end

-- Call f(item) for live entries in from..to, in order, until it returns true.
local function each_entry(box, from, to, f)
  while from <= to do
    local found = redis.call('XRANGE', key('stream', box.inbox), string.format('%.0f-0', from),
      string.format('%.0f-0', to), 'COUNT', CHUNK)
    for _, entry in ipairs(found) do
      local item = parse_entry(entry)
      if f(item, entry) then return end
      from = item.seq + 1
    end
    if #found < CHUNK then return end
  end
end

-- The last seq that a session which ended uncleanly can have handed over (R1).
local function window_end(box)
  local last, count, bytes = box.cursor, 0, 0
  each_entry(box, box.cursor + 1, box.last, function(item)
    if count == box.window_count or (count > 0 and bytes + item.size > box.window_bytes) then
      return true
    end
    count, bytes, last = count + 1, bytes + item.size, item.seq
    return false
  end)
  return last
end

local function parse_range(text)
  local from, to, reason = string.match(text, '^(%d+):(%d+):(%a)$')
  return tonumber(from), tonumber(to), reason
end

local function range_text(from, to, reason)
  return string.format('%.0f:%.0f:%s', from, to, reason)
end

-- Add one seq that is in no range yet; neighbours with one reason become one range.
local function add_range(box, seq, reason)
  local gaps, from, to = key('gaps', box.inbox), seq, seq
  local after = redis.call('ZRANGEBYSCORE', gaps, seq + 1, seq + 1)[1]
  if after then
    local _, end_, why = parse_range(after)
    if why == reason then redis.call('ZREM', gaps, after); to = end_ end
  end
  local before = redis.call('ZREVRANGEBYSCORE', gaps, seq, '-inf', 'LIMIT', 0, 1)[1]
  if before then
    local start, end_, why = parse_range(before)
    if why == reason and end_ == seq - 1 then redis.call('ZREM', gaps, before); from = start end
  end
  redis.call('ZADD', gaps, from, range_text(from, to, reason))
end

-- Move the cursor over ranges that touch it; what the agent did not end itself only up to `upto`.
local function absorb(box, upto)
  local gaps = key('gaps', box.inbox)
  while true do
    local text = redis.call('ZRANGEBYSCORE', gaps, box.cursor + 1, box.cursor + 1)[1]
    if not text then return end
    local _, to, reason = parse_range(text)
    local passed = PASSED[reason] and to or math.min(to, upto)
    if passed <= box.cursor then return end
    redis.call('ZREM', gaps, text)
    box.cursor = passed
    if passed < to then
      redis.call('ZADD', gaps, passed + 1, range_text(passed + 1, to, reason))
      return
    end
  end
end

local function give_back(quota, item)
  quota[1], quota[2] = math.max(quota[1] - 1, 0), math.max(quota[2] - item.size, 0)
end

-- End one live entry; the stream and the expiry index follow in `save`.
local function finish(box, item, fate, proof)
  box.ended[item.seq] = true
  box.touched.ended = true
  count_in(box, fate)
  box.count, box.bytes = box.count - 1, box.bytes - item.size
  if (fate == 'A' or fate == 'W') and item.seq == box.cursor + 1 then
    box.cursor = item.seq    -- the usual ack: no range comes and goes
  else
    add_range(box, item.seq, RANGE_OF[fate] or fate)
  end
  if not box.home and away_of(box).peer then
    add_to_outbox(box.away.peer, item.sender, -1, -item.size)
  end
  if item.garbage then return end
  give_back(quota_of(box, item.sender), item)
  if item.is_stranger then
    give_back(quota_of(box, '*'), item)
    if item.via then give_back(quota_of(box, '*' .. item.via), item) end
  end
  conclude_id(box, item, fate, proof)
end

local function end_entry(box, seq, fate, proof)
  if box.ended[seq] or seq <= box.cursor or seq > box.last then return nil end
  local item = entry_at(box, seq)
  if item then finish(box, item, fate, proof) end
  return item
end

-- The durable wish to tell a sender how its envelope ended; the pump makes an envelope of it.
local function intend(box, item, reason, due, maybe_delivered)
  if item.garbage or not item.bounces then return end
  -- what a restored store has for elsewhere was probably handed on long ago
  if not box.home then due = math.max(due, QUIET_UNTIL) end
  local intent = item.eid .. string.format('%.0f %d %s %s', due, maybe_delivered and 1 or 0,
    box.inbox, reason)
  redis.call('ZADD', key('bounce', item.sender), due, intent)
  redis.call('ZADD', PREFIX .. 'bounces', 'LT', due, item.sender)
end

-- A corrupt entry's facts may be corrupt, too: no bounce about an eid that the memory contradicts.
local function is_contradicted(box, item)
  local seen = redis.call('HGET', ids_key(box.inbox, item.hour), item.dedupe)
  if not seen then return false end
  local _, seq, eid16 = struct.unpack(SEEN, seen)
  return seq ~= item.seq or eid16 ~= item.eid16
end

-- End an entry that was never handed to the live session: expired or corrupt.
local function conclude(box, seq, fate, clock_ok)
  if box.ended[seq] or seq <= box.cursor or seq > box.last then return false end
  local item = entry_at(box, seq)
  if not item then return false end
  if fate == 'E' and (item.garbage or box.held or not clock_ok or item.expires > NOW) then
    return false
  end
  local silent = item.garbage or (fate == 'C' and is_contradicted(box, item))
  local maybe = box.open or is_marked(box, seq, item.marked, item.created)
  finish(box, item, fate)
  if not silent then
    local due = fate == 'E' and math.max(NOW, item.expires + BOUNCE_GRACE_S) or NOW
    intend(box, item, fate == 'E' and 'expired' or 'corrupt', due, maybe)
  end
  return true
end

local function remove_ended(box)
  local stream, expiry = key('stream', box.inbox), key('expiry', box.inbox)
  local ids, seqs = {}, {}
  for seq in pairs(box.ended) do
    seqs[#seqs + 1] = string.format('%.0f', seq)
    ids[#ids + 1] = seqs[#seqs] .. '-0'
    if #ids == 1000 then
      redis.call('XDEL', stream, unpack(ids))
      redis.call('ZREM', expiry, unpack(seqs))
      ids, seqs = {}, {}
    end
  end
  if #ids > 0 then
    redis.call('XDEL', stream, unpack(ids))
    redis.call('ZREM', expiry, unpack(seqs))
  end
  -- an empty stream is only memory; what it ended with is in `counts`, so nothing looks lost
  if box.count <= 0 and redis.call('XLEN', stream) == 0 then redis.call('UNLINK', stream) end
end

-- Write the inbox back after a script that ended entries or changed its session.
local function save(box)
  if box.touched.ended then remove_ended(box) end
  local k = key('inbox', box.inbox)
  for sender, quota in pairs(box.quotas) do
    if quota[1] == 0 then
      redis.call('HDEL', k, 'q:' .. sender)
    else
      redis.call('HSET', k, 'q:' .. sender, string.format('%.0f %.0f', quota[1], quota[2]))
    end
  end
  write_box(box)
  save_outboxes()
end
