-- A newer record names this relay as a home of the agent, or others only (core/inbox.py set_home).
--
-- When that changes, the session ends, and what waits changes hands: the agent takes it, or a
-- courier. Where the agent lives elsewhere still, a courier is to look where.
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

-- To be called for each newer record; writes the inbox.
local function set_home(box, home)
  if home and box.home then return end
  local away = away_of(box)
  if box.home ~= home then
    end_session(box)
    wait_for(box, nil)
    save_outboxes()
    box.home = home
    if not home then away.left_fence = box.fence end
    write_box(box)
  end
  away.deferred, away.closed_until, away.closed_code = 0, 0, '-'
  write_away(box)
  if home then
    redis.call('ZREM', PREFIX .. 'outboxes', box.inbox)
  else
    set_due(box, precisely())
  end
end
