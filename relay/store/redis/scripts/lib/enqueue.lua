-- Put one more entry into an inbox that forwards, for append.lua: it is due, and counts in an outbox.

-- One more will wait here for a courier: it is due, once a script is enough.
local function become_due(box)
  if box.is_due then return end
  local due_at = precisely() + (box.open and LEASE_S or 0)
  if box.count == 0 then
    redis.call('ZADD', PREFIX .. 'outboxes', due_at, box.inbox)
  else
    redis.call('ZADD', PREFIX .. 'outboxes', 'NX', due_at, box.inbox)
  end
  box.is_due = true
end

local function join_outbox(box, item)
  local away = away_of(box)
  if hands_over(box) then return end
  if not away.peer or box.count == 0 then wait_for(box, item.peer) end
  add_to_outbox(away.peer, item.sender, 1, item.size)
end
