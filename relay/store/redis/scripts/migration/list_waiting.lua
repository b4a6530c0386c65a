#!lua flags=no-writes
-- include: inbox memory outbox entries
-- What waits behind some seq, without content.
--
-- ARGV[4] inbox, [5] after, [6] how many at most.
-- Result: {inbox, {seq, eid, hour, 16-byte key, wire bytes, expires}...}
if is_foreign() then return foreign() end

local box, most, reply = view_box(ARGV[4]), tonumber(ARGV[6]), {ARGV[4]}
if not box then return unchanged(reply) end
each_entry(box, math.max(tonumber(ARGV[5]), box.cursor) + 1, box.last, function(item)
  if not item.garbage then
    reply[#reply + 1] = {item.seq, item.eid, item.hour, item.dedupe, item.size, item.expires}
  end
  return #reply > most
end)
return unchanged(reply)
