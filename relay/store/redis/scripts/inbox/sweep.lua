#!lua flags=allow-oom
-- include: inbox memory outbox entries
-- One bounded step of ending what expired, but nothing that a live session may have in flight
-- (reference/inbox.py sweep), and of forgetting ids of which everything expired.
--
-- Leased, so that nodes do not all do the same work; without need, since a repeat does nothing.
-- ARGV[4] lease in ms, [5] how many due inboxes to pass over, [6...] live nodes.
-- Result: {ended, passed over + kept in this step, 1 if there is more}
if is_foreign() then return foreign() end

local INBOXES, ENTRIES, FORGET_S = 64, 256, 2 * BOUNCE_GRACE_S
local lease = PREFIX .. 'lease:sweep'
local holder = redis.call('GET', lease)
if holder and holder ~= NODE then return unchanged({0, 0, 0}) end
redis.call('SET', lease, NODE, 'PX', ARGV[4])

local live = {}
for i = 6, #ARGV do live[ARGV[i]] = true end

local function in_flight(box)
  local lives = box.open and live[box.node] and (box.until_at == 0 or NOW < box.until_at)
  return lives and math.max(window_end(box), box.taken) or box.cursor
end

-- When to look again: the next end of an entry, or of all ids of an hour.
local function next_due(box, ids_due)
  local first = redis.call('ZRANGE', key('expiry', box.inbox), 0, 0, 'WITHSCORES')
  local due = ids_due
  if first[2] then due = math.min(due, tonumber(first[2]) + BOUNCE_GRACE_S) end
  return due
end

-- Gives how many entries ended, and whether this inbox is due no more.
local function sweep(inbox)
  local box = load_box(inbox)
  if not box then
    redis.call('ZREM', PREFIX .. 'due', inbox)
    return 0, true
  end
  local kept_upto, ended = in_flight(box), 0
  -- what a live session holds stays first in line: look past it
  local most = ENTRIES + (kept_upto > box.cursor and box.window_count or 0)
  local seqs = redis.call('ZRANGEBYSCORE', key('expiry', inbox), '-inf', NOW - BOUNCE_GRACE_S, 'LIMIT', 0, most)
  for _, seq in ipairs(seqs) do
    if tonumber(seq) > kept_upto and conclude(box, tonumber(seq), 'E', true) then
      ended = ended + 1
    end
  end
  local ids_due = purge(box, NOW - FORGET_S) + FORGET_S + 1
  save(box)
  box.due = next_due(box, ids_due)
  if box.due < NEVER then
    redis.call('ZADD', PREFIX .. 'due', box.due, inbox)
  else
    redis.call('ZREM', PREFIX .. 'due', inbox)
  end
  redis.call('HSET', key('inbox', inbox), 'counts', counts_of(box))
  return ended, box.due > NOW
end

local total, passed, again = 0, tonumber(ARGV[5]), false
local due = redis.call('ZRANGEBYSCORE', PREFIX .. 'due', '-inf', NOW, 'LIMIT', passed, INBOXES)
for _, inbox in ipairs(due) do
  local ok, ended, is_done = pcall(sweep, inbox)
  if not ok then
    passed = passed + 1   -- an inbox that is damaged must not keep the others from ending
  else
    total = total + ended
    if not is_done and ended == 0 then
      passed = passed + 1   -- held by its session: it stays first in line
    elseif not is_done then
      again = true
    end
  end
end
local more = again or #due == INBOXES
if not more then redis.call('DEL', lease) end
if #due == 0 then return unchanged({0, passed, 0}) end
return committed({total, passed, more and 1 or 0})
