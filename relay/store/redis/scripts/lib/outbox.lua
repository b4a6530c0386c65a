-- What waits here for other relays (reference/forwarding.py): inboxes whose agents live elsewhere.
--
-- outboxes      sorted set: inbox -> when a courier should look at it, or a mover; all in which
--               something waits for one
-- outbox:<peer> hash: all, q:SENDER -> count bytes of what waits for this peer
-- outbox_peers  set: the peers for which something waits
local outboxes = {}

local function precisely()
  return NOW + tonumber(clock[2]) / 1000000
end

local function outbox_of(peer)
  local outbox = outboxes[peer]
  if not outbox then
    local all = redis.call('HGET', key('outbox', peer), 'all')
    outbox = {all = all and numbers(all, '^(%d+) (%d+)$') or {0, 0}, shares = {}}
    outboxes[peer] = outbox
  end
  return outbox
end

local function share_of(peer, sender)
  local shares = outbox_of(peer).shares
  if not shares[sender] then
    local text = redis.call('HGET', key('outbox', peer), 'q:' .. sender)
    shares[sender] = text and numbers(text, '^(%d+) (%d+)$') or {0, 0}
  end
  return shares[sender]
end

local function add_up(sums, count, size)
  sums[1], sums[2] = math.max(sums[1] + count, 0), math.max(sums[2] + size, 0)
end

-- Count what came, or with negative numbers what went; `save_outboxes` writes it.
local function add_to_outbox(peer, sender, count, size)
  local outbox = outbox_of(peer)
  add_up(outbox.all, count, size)
  if sender then add_up(share_of(peer, sender), count, size) end
  outbox.is_dirty = true
end

local function write_sums(k, field, sums)
  if sums[1] == 0 then
    redis.call('HDEL', k, field)
  else
    redis.call('HSET', k, field, string.format('%.0f %.0f', sums[1], sums[2]))
  end
end

local function save_outboxes()
  for peer, outbox in pairs(outboxes) do
    if outbox.is_dirty then
      local k = key('outbox', peer)
      write_sums(k, 'all', outbox.all)
      for sender, share in pairs(outbox.shares) do write_sums(k, 'q:' .. sender, share) end
      if outbox.all[1] == 0 then
        redis.call('UNLINK', k)
        redis.call('SREM', PREFIX .. 'outbox_peers', peer)
      else
        redis.call('SADD', PREFIX .. 'outbox_peers', peer)
      end
      outbox.is_dirty = false
    end
  end
end

-- Count what waits in this inbox under this peer from now on; nil: nowhere. What the inbox says of
-- its senders must have been written before.
local function wait_for(box, peer)
  local away = away_of(box)
  if away.peer == peer then return end
  if box.count > 0 then
    local flat = redis.call('HGETALL', key('inbox', box.inbox))
    for i = 1, #flat, 2 do
      local sender = string.match(flat[i], '^q:([^*].*)$')
      if sender then
        local quota = numbers(flat[i + 1], '^(%d+) (%d+)$')
        if away.peer then add_to_outbox(away.peer, sender, -quota[1], -quota[2]) end
        if peer then add_to_outbox(peer, sender, quota[1], quota[2]) end
      end
    end
  end
  away.peer, away.is_changed = peer, true
end

-- Whether it has not been empty since its agent left. What waited then was taken as at home and is no
-- outbox's, nor is what comes behind it (reference/quotas.py hands_over).
local function hands_over(box)
  return box.tally and box.count > 0 and not away_of(box).peer
end

local function has_work(box)
  return redis.call('HEXISTS', key('inbox', box.inbox), 'mover') == 1
end

-- When a courier or a mover should look at it, where there is something for one.
local function set_due(box, at)
  if (box.count > 0 and not box.home) or has_work(box) then
    redis.call('ZADD', PREFIX .. 'outboxes', at, box.inbox)
  else
    redis.call('ZREM', PREFIX .. 'outboxes', box.inbox)
  end
end

-- There is something for a mover to do, or to find out.
local function call_mover(box)
  redis.call('HSET', key('inbox', box.inbox), 'mover', 1)
  set_due(box, precisely())
end
