-- What has room in an inbox, in an outbox, and in the memory of ids (R3, R7), for append.lua. Its limits
-- MAX_COUNT … SHARES, `box_of` and `changed` are there.
local SHEDDERS = 16   -- how many of those that remember most are asked to forget

local function over_quota(box, item, quota)
  local size = item.size
  if box.count >= MAX_COUNT or box.bytes + size > MAX_BYTES then return 'inbox_full' end
  if quota[1] >= SENDER_COUNT or quota[2] + size > SENDER_BYTES then return 'sender_quota' end
  if item.is_stranger then
    local all = quota_of(box, STRANGERS)
    if all[1] >= STRANGER_COUNT or all[2] + size > STRANGER_BYTES then return 'stranger_quota' end
    if item.via then
      local brought = quota_of(box, STRANGERS .. item.via)
      if brought[1] >= math.floor(STRANGER_COUNT / PEER_SHARE) or
        brought[2] + size > math.floor(STRANGER_BYTES / PEER_SHARE) then return 'stranger_quota' end
    end
  end
  return nil
end

-- What moves comes past all shares, but nobody fills a store with it.
local function over_twice(box, size)
  local is_full = box.count >= 2 * MAX_COUNT or box.bytes + size > 2 * MAX_BYTES
  return is_full and 'inbox_full' or nil
end

local function is_over(sums, size, count, bytes)
  return sums[1] >= count or sums[2] + size > bytes
end

-- The bounds of an outbox (reference/forwarding.py objection). While something waits for a peer, only a
-- courier says that it waits for another.
local function over_bounds(box, item, quota)
  local away, size = away_of(box), item.size
  if NOW < away.closed_until then return 'closed' end
  if hands_over(box) then return over_quota(box, item, quota) end
  local peer = away.peer and box.count > 0 and away.peer or item.peer
  if is_over(outbox_of(peer).all, size, OUTBOX_COUNT, OUTBOX_BYTES) then return 'outbox_full' end
  local count = math.max(1, math.floor(OUTBOX_COUNT / SHARES))
  local bytes = math.floor(OUTBOX_BYTES / SHARES)
  if is_over(share_of(peer, item.sender), size, count, bytes) then return 'outbox_sender' end
  if is_over({box.count, box.bytes}, size, count, bytes) then return 'outbox_inbox' end
  return nil
end

local function count_refusal(box)
  local k = key('inbox', box.inbox)
  local refused = redis.call('HGET', k, 'refused')
  local r = refused and numbers(refused, '^(%d+) (%d+) (%d+)$') or {0, NOW, NOW}
  redis.call('HSET', k, 'refused', string.format('%.0f %.0f %.0f', r[1] + 1, r[2], NOW))
  changed = true
end

-- Room in this inbox's memory of ids; it sheds its own oldest hours. Strangers fill at most half.
local function has_own_room(box, item)
  local is_bound = item.is_stranger and not item.moving
  local most = is_bound and math.floor(MAX_IDS / 2) or MAX_IDS
  while box.ids >= most do
    if not shed(box) then return false end
    box.is_dirty, changed = true, true
  end
  return true
end

-- Room in the budget of all: the inbox that remembers most gives way first (R3). Strangers fill at
-- most three quarters; of what is for elsewhere nobody knows who is one.
local function has_room(box, item)
  local is_bound = (item.is_stranger or not box.home) and not item.moving
  local most = is_bound and math.floor(ALL_IDS * 3 / 4) or ALL_IDS
  while IDS >= most do
    local done = false
    for _, inbox in ipairs(redis.call('ZREVRANGE', PREFIX .. 'memory', 0, SHEDDERS - 1)) do
      local other = inbox == box.inbox and box or box_of(inbox)
      if other and shed(other) then
        other.is_dirty, done, changed = true, true, true
        break
      end
    end
    if not done then return false end
  end
  return true
end
