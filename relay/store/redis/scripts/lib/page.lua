-- A share of an inbox after some seq (reference/inbox.py _page): {after, upto, entries, ranges, expired}.
local MOST_EXPIRED = 256   -- a long expired run is concluded in bounded steps

local function ranges_between(box, after, upto)
  local gaps, found = key('gaps', box.inbox), {}
  local before = redis.call('ZREVRANGEBYSCORE', gaps, after, '-inf', 'LIMIT', 0, 1)[1]
  if before then
    local _, to = parse_range(before)
    if to > after then found[1] = before end
  end
  for _, text in ipairs(redis.call('ZRANGEBYSCORE', gaps, after + 1, upto)) do
    found[#found + 1] = text
  end
  return found
end

local function page_of(box, after, count, bytes, clock_ok)
  local entries, expired, upto = {}, {}, box.last
  -- a selective ack may have moved the cursor past a reader, and ranges end at the cursor
  after = math.max(after, box.cursor)
  each_entry(box, after + 1, box.last, function(item, entry)
    -- what a session without a connection was given is in flight until it ends (R6)
    local is_over = clock_ok and item.expires and item.expires <= NOW and item.seq > box.taken
    if is_over and #expired < MOST_EXPIRED then
      expired[#expired + 1] = item.seq
    elseif #expired > 0 then
      return true
    elseif #entries == count or (#entries > 0 and item.size > bytes) then
      upto = item.seq - 1
      return true
    else
      entries[#entries + 1] = entry
      bytes = bytes - item.size
    end
    return false
  end)
  if expired[1] then upto = expired[1] - 1 end
  return {after, upto, entries, ranges_between(box, after, upto), expired}
end

local function page_reply(box, page)
  local marked_upto = box.doubtful and box.last or math.max(box.handed, box.taken)
  return {box.inbox, 'page', box.epoch, box.last, marked_upto, box.mark_before,
    page[1], page[2], page[3], page[4], page[5]}
end
