#!lua flags=no-writes
-- include: inbox memory outbox entries
-- Ids that the agent of an inbox may have seen (reference/handoff.py doubts): what is remembered, the
-- newest hour first, then what waits and is marked. An id may come twice.
--
-- ARGV[4] inbox, [5] '' or where to go on: h, an hour and a place in it, or s and a seq; [6] about how many.
-- Result: {inbox, ids of 36 bytes each, where to go on or '', floor}
if is_foreign() then return foreign() end

local SCANNED, READ = 512, 512
local SHOWN = {A = true, R = true, E = true, C = true, D = true}
local inbox, most, found = ARGV[4], tonumber(ARGV[6]), {}
local box = view_box(inbox)
if not box then return unchanged({inbox, '', '', -1}) end
local handed = math.max(box.handed, box.taken)

local function add(hour, id, eid16)
  found[#found + 1] = struct.pack(MAYBE_SEEN_ID, hour, id, eid16)
end

-- What is marked by its time may have been shown, and its ids forgotten.
local function floor_of_marks()
  return box.mark_before > 0 and math.ceil((box.mark_before - BOUNCE_GRACE_S) / HOUR_S) - 1 or -1
end

local function reply(after)
  return unchanged({inbox, table.concat(found), after, math.max(box.floor, floor_of_marks())})
end

local function add_some(hour, flat)
  for i = 1, #flat, 2 do
    if flat[i] ~= 'x' then
      local fate, seq, eid16 = struct.unpack(SEEN, flat[i + 1])
      local is_shown = fate == 'S' and (box.doubtful or seq <= handed)
      if SHOWN[fate] or is_shown then add(hour, flat[i], eid16) end
    end
  end
end

-- Where to go on, or nil where all hours were looked at.
local function add_hours(first, place)
  for _, hour in ipairs(redis.call('ZREVRANGEBYSCORE', key('hours', inbox), first, '-inf')) do
    if hour ~= first then place = '0' end
    repeat
      local scanned = redis.call('HSCAN', ids_key(inbox, hour), place, 'COUNT', SCANNED)
      place = scanned[1]
      add_some(tonumber(hour), scanned[2])
      if #found >= most then
        if place == '0' then return string.format('h %.0f 0', hour - 1) end
        return string.format('h %s %s', hour, place)
      end
    until place == '0'
  end
  return nil
end

local function add_marked(from)
  local looked, at = 0, from
  each_entry(box, from, box.last, function(item)
    looked, at = looked + 1, item.seq + 1
    if not item.garbage and is_marked(box, item.seq, item.marked, item.created) then
      add(item.hour, item.dedupe, item.eid16)
    end
    return looked == READ or #found >= most
  end)
  return (looked == READ or #found >= most) and string.format('s %.0f', at) or ''
end

local from = tonumber(string.match(ARGV[5], '^s (%d+)$'))
if not from then
  local first, place = string.match(ARGV[5], '^h (%d+) (%d+)$')
  local on = add_hours(first or '+inf', place or '0')
  if on then return reply(on) end
  from = math.max(handed, box.cursor) + 1
end
return reply(add_marked(from))
