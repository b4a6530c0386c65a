#!lua flags=no-writes
-- include: inbox memory
-- What became of ids; also whether an envelope that must be refused now was stored before.
--
-- ARGV[4...] per question: inbox, hour, 16-byte key.
-- Result, per question: {inbox, epoch, seq, fate, first 16 bytes of the eid, 0 if it is nowhere
-- here, and would be kept anew, 1 if it waits for a courier or went on, '' or proof that it went on} or {inbox}.
if is_foreign() then return foreign() end

local replies, boxes = {}, {}
for i = 4, #ARGV, 3 do
  local inbox = ARGV[i]
  local seen = redis.call('HGET', ids_key(inbox, ARGV[i + 1]), ARGV[i + 2])
  local reply = {inbox}
  if seen then
    local box = boxes[inbox] or read_box(inbox)
    boxes[inbox] = box
    local fate, seq, eid16 = struct.unpack(SEEN, seen)
    if box then
      local is_back = fate == 'D' or (fate == 'W' and box.home)
      local is_there = not is_back and (fate ~= 'S' or is_live(inbox, seq))
      reply = {inbox, box.epoch, seq, fate, eid16, is_there and 1 or 0,
        has_gone(box, fate) and 1 or 0, proof_behind(seen)}
    end
  end
  replies[#replies + 1] = reply
end
return unchanged(replies)
