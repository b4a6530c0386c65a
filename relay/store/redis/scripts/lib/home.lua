-- What becomes of an inbox: its agent takes what it has, a courier, or for now nobody.
local function end_session(box)
  if box.open then
    box.handed = math.max(box.handed, window_end(box))
    local news = {}
    note(news, box.node, box.inbox)
    wake(news)
  end
  box.handed, box.taken = math.max(box.handed, box.taken), 0
  box.fence, box.open, box.node = box.fence + 1, false, ''
end

local function open_outbox(away)
  away.deferred, away.closed_until, away.closed_code = 0, 0, '-'
end

-- No session goes on, and nothing waits for a peer (reference/inbox.py turn); writes the inbox.
local function turn(box, holding)
  end_session(box)
  local away = away_of(box)
  if box.home ~= (holding ~= '0') then
    wait_for(box, nil)
    save_outboxes()
    open_outbox(away)
  end
  if holding == '0' or holding == '2' then away.left_fence = box.fence end
  set_holding(box, holding)
  write_box(box)
  write_away(box)
end

-- To be called for each newer record that names this relay as a home of the agent, or others only
-- (reference/inbox.py set_home); whether that changes what becomes of the inbox.
local function set_home(box, home)
  if box.home ~= home then
    turn(box, home and '3' or '0')
    call_mover(box)
    return true
  end
  if not home then
    open_outbox(away_of(box))
    write_away(box)
    set_due(box, precisely())
  end
  return false
end
