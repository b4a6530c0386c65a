-- What an inbox remembers of ids (R3): one hash per (inbox, hour of the UUIDv7).
--
-- ids:<hour>:<inbox>  16-byte key -> fate, seq (0 of what is not here), first 16 bytes of eid, and of what was forwarded the
--                     SHA-256 of the receipt and the number of the peer; field `x` = newest expiry
-- hours:<inbox>       sorted set of its hours
-- memory              sorted set: inbox -> how many ids it remembers, to MEMORY_STEP
-- peer_numbers        hash: peer -> number, #number -> peer: a number is shorter than a key
local SEEN, PROOF = '>c1I6c16', '>c32I4'
local SEEN_BYTES = 23

local function ids_key(inbox, hour)
  return key('ids', hour .. ':' .. inbox)
end

local function rank_memory(box)
  if box.ids < MEMORY_STEP then
    redis.call('ZREM', PREFIX .. 'memory', box.inbox)
  else
    redis.call('ZADD', PREFIX .. 'memory', box.ids, box.inbox)
  end
end

local function drop_hour(box, hour)
  local k = ids_key(box.inbox, hour)
  local gone = math.max(redis.call('HLEN', k) - 1, 0)
  redis.call('UNLINK', k)
  redis.call('ZREM', key('hours', box.inbox), hour)
  box.ids = math.max(box.ids - gone, 0)
  IDS = math.max(IDS - gone, 0)
  rank_memory(box)
end

-- Forget the oldest hour, which becomes the floor; false with only the newest ones left.
local function shed(box)
  local hours = key('hours', box.inbox)
  if redis.call('ZCARD', hours) <= MIN_DEDUP_HOURS then return false end
  local oldest = redis.call('ZRANGE', hours, 0, 0)[1]
  drop_hour(box, oldest)
  box.floor = math.max(box.floor, tonumber(oldest))
  return true
end

-- Forget hours in which everything expired before `before`; gives when the next one is due.
local function purge(box, before)
  local next_expiry = NEVER
  for _, hour in ipairs(redis.call('ZRANGE', key('hours', box.inbox), 0, -1)) do
    local newest = tonumber(redis.call('HGET', ids_key(box.inbox, hour), 'x') or 0)
    if newest < before then
      drop_hour(box, hour)
    else
      next_expiry = math.min(next_expiry, newest)
    end
  end
  return next_expiry
end

-- Whether an entry is there, which its id alone does not prove.
local function is_live(inbox, seq)
  local id = string.format('%.0f-0', seq)
  return #redis.call('XRANGE', key('stream', inbox), id, id) > 0
end

-- Write down what became of an id, if it is still remembered.
local function conclude_id(box, item, fate, proof)
  local k = ids_key(box.inbox, item.hour)
  if redis.call('HEXISTS', k, item.dedupe) == 1 then
    redis.call('HSET', k, item.dedupe,
      struct.pack(SEEN, fate, item.seq, item.eid16) .. (proof or ''))
  end
end

-- Who took an envelope over, as it is kept behind its id: SHA-256 of the receipt, and the peer.
local function pack_proof(receipt, peer)
  local k = PREFIX .. 'peer_numbers'
  local number = redis.call('HGET', k, peer)
  if not number then
    number = redis.call('HLEN', k) / 2 + 1
    redis.call('HSET', k, peer, number, '#' .. number, peer)
  end
  return struct.pack(PROOF, receipt, tonumber(number))
end

local function proof_behind(seen)
  if #seen <= SEEN_BYTES then return '' end
  local receipt, number = struct.unpack(PROOF, seen, SEEN_BYTES + 1)
  return receipt .. (redis.call('HGET', PREFIX .. 'peer_numbers', '#' .. number) or '')
end

-- Whether what became of an envelope is no custody of an inbox: it waits, or went on.
local function has_gone(box, fate)
  return fate == 'W' or (fate == 'S' and not box.home)
end
