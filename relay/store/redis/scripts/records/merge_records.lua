#!lua
-- include: inbox memory outbox entries home records
-- Keep the newer of each held and given endpoint record, and the mode of its inbox with it, in one
-- step (PROTOCOL.md §7.2, §7.4; protocol/endpoint_record.py judge). Each row is judged alone.
--
-- ARGV[4] how many records this partition takes in, [5] how many of them one peer may introduce,
-- [6] the rows, one after another: 1 if the mode that is there stays, two lengths, owner, text.
-- Result, per row: {owner, outcome, text held now, or '' where it is the given one or none, 1 if it is
-- news for an inbox here that changes relays, or may}.
if is_foreign() then return foreign() end

local MOST, SHARE = tonumber(ARGV[4]), tonumber(ARGV[5])
-- a seq that is further ahead of the clock is void: it locks nobody out
local VOID_ABOVE = (NOW + MAX_AHEAD_S) * 1000
local changed = false

-- Hex digits of one length: compared byte by byte, since `<` on strings asks the server's locale.
local function is_above(one, other)
  for i = 1, #one do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a > b end
  end
  return false
end

local function verdict_of(held, row)
  if not held then return 'newer' end
  local is_void, was_void = row.seq > VOID_ABOVE, held.seq > VOID_ABOVE
  if is_void ~= was_void then return was_void and 'newer' or 'older' end
  if row.kv ~= held.kv then return row.kv > held.kv and 'newer' or 'older' end
  if row.seq ~= held.seq then return row.seq > held.seq and 'newer' or 'older' end
  return row.hash == held.hash and 'same' or 'equivocal'
end

-- Of agents that nobody here knows, no more than fit; what is known is never given up for it.
local function is_full(row, box)
  if row.introducer == '-' or box then return false end
  local held = redis.call('ZCARD', PREFIX .. 'changed') - redis.call('ZCARD', PREFIX .. 'gone')
  if held >= MOST then return true end
  return tonumber(redis.call('HGET', PREFIX .. 'introducers', row.introducer) or 0) >= SHARE
end

local function keep_evidence(owner, held, row)
  local k = key('evidence', owner)
  if redis.call('EXISTS', k) == 1 then return false end
  redis.call('RPUSH', k, jws_of(held.text), jws_of(row.text))
  changed = true
  return true
end

-- Who was first to tell of an agent stays so, until the agent comes itself.
local function introducer_of(owner, held, row)
  if not held then
    count_introduced(row.introducer, 1)
    return row.introducer
  end
  if row.introducer ~= '-' then return held.introducer end
  count_introduced(held.introducer, -1)
  return '-'
end

local function write(owner, row, home, introducer)
  local text = string.format('%d %.0f %.0f %s %.0f %s %s', home and 1 or 0, row.kv, row.seq,
    row.hash, row.expires, introducer, jws_of(row.text))
  redis.call('SET', record_key(owner), text)
  changed = true
  return text
end

local function reply_of(owner, outcome, row, text, moves)
  return {owner, outcome, text ~= row.text and text or '', moves and 1 or 0}
end

local function is_moving(owner)
  return redis.call('HEXISTS', key('inbox', owner), 'handoff') == 1
end

-- A step of the hand-off decides what becomes of an inbox that has one.
local function tell_inbox(box, home)
  if not box then return false end
  if not is_moving(box.inbox) then return set_home(box, home) end
  call_mover(box)
  return true
end

-- Two records of one seq: whether that concerns an inbox here.
local function tell_of_fork(owner, held, row)
  if not keep_evidence(owner, held, row) then return false end
  local box = load_box(owner)
  if box and is_moving(owner) then call_mover(box) end
  return box ~= nil
end

local function home_after(held, box, row, stays)
  if not stays then return row.home end
  if held then return held.home end
  if box then return box.home end
  return row.home
end

local function merge(owner, row, stays)
  local text = redis.call('GET', record_key(owner))
  local held = text and parse_row(text)
  local outcome = verdict_of(held, row)
  local is_forked = outcome == 'equivocal' and tell_of_fork(owner, held, row)
  if outcome == 'same' and row.introducer == '-' and held.introducer ~= '-' then
    local introducer = introducer_of(owner, held, row)
    return reply_of(owner, outcome, row, write(owner, held, held.home, introducer))
  end
  if outcome == 'older' or outcome == 'same' or
    (outcome == 'equivocal' and not is_above(row.hash, held.hash)) then
    return reply_of(owner, outcome, row, text, is_forked)
  end
  local box = load_box(owner)
  if not held and is_full(row, box) then return {owner, 'full', '', 0} end
  local home = home_after(held, box, row, stays)
  if held and held.home ~= home then redis.call('SET', former_key(owner), jws_of(held.text)) end
  local kept = write(owner, row, home, introducer_of(owner, held, row))
  redis.call('ZREM', PREFIX .. 'gone', owner)
  note_change(owner)
  local moves = tell_inbox(box, home)
  return reply_of(owner, outcome, row, kept, moves or is_forked)
end

local replies, blob, at = {}, ARGV[6], 1

local function next_part(size)
  at = at + size
  return string.sub(blob, at - size, at - 1)
end

while at <= #blob do
  local stays, owner_size, text_size
  stays, owner_size, text_size, at = struct.unpack('>BI2I2', blob, at)
  local owner = next_part(owner_size)
  replies[#replies + 1] = merge(owner, parse_row(next_part(text_size)), stays == 1)
end
if changed then return committed(replies) end
return unchanged(replies)
