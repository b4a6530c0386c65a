-- What the memory of ids says of an envelope that comes again, for append.lua; `elsewhere` and `changed`
-- are there.

-- The facts of an entry, if it is there, which its id alone does not prove.
local function live_facts(inbox, seq)
  local id = string.format('%.0f-0', seq)
  local found = redis.call('XRANGE', key('stream', inbox), id, id)
  return found[1] and found[1][2][2]
end

-- What came with its inbox is here already: a mark that it brings is kept (reference/inbox.py).
local function brought_again(box, item, seq, here)
  if box.tally then
    count_in(box, 'dups')
    box.is_dirty, changed = true, true
  end
  if not item.marked or not here then return end
  local _, flags = struct.unpack('>c8B', here)
  -- a doubt about all of it is no mark: it ends
  if flags % 4 < 2 and seq > box.handed then
    box.handed = seq
    box.is_remarked, box.is_dirty, changed = true, true, true
  end
end

-- What the memory of ids says: an answer, or nil where it is to be kept, perhaps anew (reference/quotas.py).
local function recall(box, item, seen)
  if not seen then
    -- a part of an inbox that moves is taken however old it is, and nobody can tell
    local is_forgotten = item.moving and item.hour <= box.floor
    return is_forgotten and not item.marked and {box.inbox, 'lost'} or nil
  end
  local fate, seq, eid16 = struct.unpack(SEEN, seen)
  -- another relay's word on an id turns nothing away
  if eid16 ~= item.eid16 and fate ~= 'D' then return {box.inbox, 'replayed'} end
  local is_anew = fate == 'D' or (fate == 'W' and box.home)
  if not is_anew then
    if item.via and has_gone(box, fate) then return elsewhere(box.inbox) end
    local here = fate == 'S' and live_facts(box.inbox, seq)
    if fate ~= 'S' or here then
      if item.moving then brought_again(box, item, seq, here) end
      return {box.inbox, has_gone(box, fate) and 'gone' or 'dup', seq, box.epoch}
    end
  end
  -- the store lost it, or another relay may have shown it. What had gone on from here and comes back
  -- was not: if it does so with its inbox, its mark is all that is to be said
  if item.marked or (fate == 'W' and item.moving) then return nil end
  return {box.inbox, 'lost'}
end
