#!lua flags=allow-oom
-- include: inbox memory outbox entries home records
-- Take a step of a hand-off, with all that it does to the inbox (reference/handoff.py), if nobody else
-- took one meanwhile and no newer record came. May run when memory is full: else no source would drain.
-- A repeat finds another text, and does nothing.
--
-- ARGV[4] inbox, [5] the text that was seen, [6] kv seq hash of the record that was seen, or '',
-- [7] text from now on, [8] holding, [9..13] 1 if: the session ends, all that waits is marked, the tally
-- begins anew, it is open, a mover has work; [14] floor, [15] ids of the inbox, [16] ids_per_partition,
-- [17] ids that are doubtful, 36 bytes each. Result: {inbox, 1 or 0}
if is_foreign() then return foreign() end

local SLICE = 1000
local inbox, k = ARGV[4], key('inbox', ARGV[4])
local ends_session, marks_present, is_new = ARGV[9] == '1', ARGV[10] == '1', ARGV[11] == '1'

local function order_held()
  local row = head_of(inbox)
  return row and string.format('%.0f %.0f %s', row.kv, row.seq, row.hash) or ''
end

if (redis.call('HGET', k, 'handoff') or '') ~= ARGV[5] then return unchanged({inbox, 0}) end
if order_held() ~= ARGV[6] then return unchanged({inbox, 0}) end

local function mark_present(box)
  box.handed = box.last
end

-- Who may read it: the agent, a courier, or nobody.
local function reader_of(holding)
  return holding == '3' and '1' or holding
end

local function hold(box, holding)
  if ends_session or reader_of(box.holding) ~= reader_of(holding) then turn(box, holding) end
  set_holding(box, holding)
  if not box.home then
    open_outbox(away_of(box))
    write_away(box)
  end
end

-- Whatever was created from then on has an id of a later hour.
local function end_of(hour)
  return (hour + 1) * HOUR_S + BOUNCE_GRACE_S
end

-- For as long as an envelope under these ids can live.
local function remember(box, hour, fields, count)
  local ids, expires = ids_key(inbox, hour), (hour + 1) * HOUR_S + MAX_ENVELOPE_LIFETIME_S
  for first = 1, #fields, SLICE do
    redis.call('HSET', ids, unpack(fields, first, math.min(first + SLICE - 1, #fields)))
  end
  redis.call('HSET', ids, 'x', math.max(tonumber(redis.call('HGET', ids, 'x') or 0), expires))
  redis.call('ZADD', key('hours', inbox), hour, hour)
  box.ids, IDS = box.ids + count, IDS + count
  rank_memory(box)
  local due = expires + 2 * BOUNCE_GRACE_S + 1
  if due < box.due then
    redis.call('ZADD', PREFIX .. 'due', 'LT', due, inbox)
    box.due = due
  end
end

-- What is not known here; of what is, that which waits is marked.
local function unknown_of(box, hour, keys, eids)
  local fields, is_new_key = {}, {}
  for i, seen in ipairs(redis.call('HMGET', ids_key(inbox, hour), unpack(keys))) do
    if not seen then
      if not is_new_key[keys[i]] then
        is_new_key[keys[i]] = true
        fields[#fields + 1] = keys[i]
        fields[#fields + 1] = struct.pack(SEEN, 'D', 0, eids[i])
      end
    else
      local fate, seq, eid16 = struct.unpack(SEEN, seen)
      if fate == 'W' then
        -- it went on from here, and where it went it may have been shown
        redis.call('HSET', ids_key(inbox, hour), keys[i], struct.pack(SEEN, 'D', 0, eid16))
      elseif fate == 'S' and seq > box.handed and is_live(inbox, seq) then
        box.handed = seq
      end
    end
  end
  return fields
end

-- Nothing is forgotten for ids that another relay names: of an hour that there is no room for, all is
-- marked instead, and of all before it. So it is where this inbox itself has forgotten: what waits may
-- be one of them.
local function learn_hour(box, hour, keys, eids, most)
  local fields = unknown_of(box, hour, keys, eids)
  local count = #fields / 2
  if count == 0 or box.mark_before >= end_of(hour) then return end
  if hour <= box.floor or box.ids + count > most then
    box.mark_before = end_of(hour)
  else
    remember(box, hour, fields, count)
  end
end

local function learn_doubts(box, blob)
  local most = math.min(tonumber(ARGV[15]), box.ids + tonumber(ARGV[16]) - IDS)
  local hour, keys, eids = nil, {}, {}
  for at = 1, #blob, MAYBE_SEEN_ID_BYTES do
    local of, id, eid16 = struct.unpack(MAYBE_SEEN_ID, blob, at)
    if of ~= hour and #keys > 0 then
      learn_hour(box, hour, keys, eids, most)
      keys, eids = {}, {}
    end
    hour, keys[#keys + 1], eids[#eids + 1] = of, id, eid16
  end
  if #keys > 0 then learn_hour(box, hour, keys, eids, most) end
end

-- What another relay has forgotten is marked, and never turned away.
local function learn_floor(box, floor)
  if floor >= 0 then box.mark_before = math.max(box.mark_before, end_of(floor)) end
end

local box = load_box(inbox) or new_box(inbox, ARGV[8])
local is_news = ends_session or box.holding ~= ARGV[8] or (ARGV[13] == '1' and not has_work(box))
hold(box, ARGV[8])
if marks_present then mark_present(box) end
learn_floor(box, tonumber(ARGV[14]))
learn_doubts(box, ARGV[17])
if is_new then box.tally = {box.last, box.count, box.bytes, 0, 0, 0, 0, 0, 0, 0} end
write_box(box)
redis.call('HSET', k, 'handoff', ARGV[7])
redis.call(ARGV[12] == '1' and 'SADD' or 'SREM', PREFIX .. 'handoffs', inbox)
if ARGV[13] == '1' then
  redis.call('HSET', k, 'mover', 1)
else
  redis.call('HDEL', k, 'mover')
end
-- who takes a step that is nothing new for others has been lent it, perhaps, and keeps it
local lent = not is_news and redis.call('ZSCORE', PREFIX .. 'outboxes', inbox)
set_due(box, lent and tonumber(lent) or precisely())
return committed({inbox, 1})
