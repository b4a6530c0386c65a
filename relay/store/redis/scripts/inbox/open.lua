#!lua flags=allow-oom
-- include: inbox memory outbox entries records
-- Fence off any earlier session and give the inbox to a new one (reference/inbox.py open_session, R1).
-- May run when memory is full: an inbox that cannot be opened never drains.
--
-- ARGV[4] inbox, [5] node, [6] window count, [7] window bytes, [8] until, [9] 1 if it may be made,
-- [10] 1 if it is a courier's: only while the agent lives elsewhere.
-- Result: {inbox, 'opened', fence, epoch, cursor, last, count, bytes, oldest or -1,
--          refused count, first, last, previous fence or 0, previous node, previous until}
--         or {inbox, 'unknown_inbox'}, or {inbox, 'migrating'} while nobody may read it
if is_foreign() then return foreign() end

local inbox = ARGV[4]
local is_courier = ARGV[10] == '1'
local box = load_box(inbox)

local function locked_out()
  if is_courier then return (not box or box.home) and 'unknown_inbox' or nil end
  if box and box.held then return 'migrating' end
  local record = head_of(inbox)
  if record and not record.home then return 'unknown_inbox' end
  if not box then return ARGV[9] ~= '1' and 'unknown_inbox' or nil end
  -- its agent is coming home, and a step of the hand-off says so in a moment
  return not box.home and 'migrating' or nil
end

local no = locked_out()
if no then return unchanged({inbox, no}) end
local is_doubtful = not box and redis.call('EXISTS', former_key(inbox)) == 1
-- where another home may have shown what comes, and has not said what, a mover is to ask
if not box then box = new_box(inbox, is_doubtful and '3' or '1') end

local previous = {0, '', 0}
if box.open then
  previous = {box.fence, box.node, box.until_at}
  box.handed = math.max(box.handed, window_end(box))
  local news = {}
  if box.node ~= ARGV[5] then note(news, box.node, inbox) end
  wake(news)
end
box.handed, box.taken = math.max(box.handed, box.taken), 0
box.fence, box.open, box.node = box.fence + 1, true, ARGV[5]
box.window_count, box.window_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
box.until_at = tonumber(ARGV[8])
write_box(box)
if is_doubtful then call_mover(box) end
if is_courier and away_of(box).deferred > 0 then
  box.away.deferred = 0
  write_away(box)
end

local oldest = -1
each_entry(box, box.cursor + 1, box.last, function(item)
  oldest = item.created or 0
  return true
end)
local refused = redis.call('HGET', key('inbox', inbox), 'refused')
local r = refused and numbers(refused, '^(%d+) (%d+) (%d+)$') or {0, 0, 0}
return committed({inbox, 'opened', box.fence, box.epoch, box.cursor, box.last, box.count, box.bytes,
  oldest, r[1], r[2], r[3], previous[1], previous[2], previous[3]})
