#!lua flags=allow-oom
-- Begin a new generation of a partition: it is new, or was rolled back or emptied.
--
-- All inboxes get a new epoch when they are next touched (lib/inbox.lua load_box), so this is one
-- small write however many there are. Nothing happens if the token is not the one that was judged:
-- another node was quicker. (Commits may have moved on: a node that knows less goes on writing.)
--
-- KEYS[1] relay:{p}:state. ARGV[1] token that was found ('' for none), [2] new token,
-- [3] number above which the new generation must be, [4] 1 if something was lost: then what was
-- created until BOUNCE_GRACE_S from now is marked, and what waits for other relays does not bounce for a day.
-- Result: {number, token, commits}
local state = redis.call('HMGET', KEYS[1], 'number', 'token', 'commits', 'mark_before', 'quiet_until')
local token, commits = state[2] or '', tonumber(state[3] or 0)
if token == ARGV[1] then
  local number = math.max(tonumber(state[1] or 0), tonumber(ARGV[3])) + 1
  local mark_before = tonumber(state[4] or 0)
  local quiet_until = tonumber(state[5] or 0)
  if ARGV[4] == '1' then
    local now = tonumber(redis.call('TIME')[1])
    mark_before = math.max(mark_before, now + BOUNCE_GRACE_S)
    quiet_until = math.max(quiet_until, now + 86400)
  end
  commits = commits + 1
  redis.call('HSET', KEYS[1], 'number', number, 'token', ARGV[2], 'commits', commits,
    'mark_before', mark_before, 'quiet_until', quiet_until)
  return {number, ARGV[2], commits}
end
return {tonumber(state[1] or 0), token, commits}
