-- Endpoint records and the mode of inboxes (PROTOCOL.md §7.2, §7.4). Each record is one text: a
-- hash of fields this long costs some 200 bytes more, and there may be a million.
--
-- record:<owner>    home kv seq hash expires introducer jws, one space between. home is 1 while
--                   this relay is a home; hash in hex; expires 0 = not known; introducer - = none
-- former:<owner>    jws of the record before it, when it last changed whether this relay is a home
-- evidence:<owner>  list: two records of one kv and seq
-- changed           sorted set: owner -> number of its newest change (state: changes)
-- gone              sorted set: owner -> when its record was purged, or was over and kept for its
--                   inbox; it leaves `changed` some time later
-- introducers       hash: peer -> how many agents it was the first to tell of
local ROW = '^(%d) (%d+) (%d+) (%x+) (%d+) (%S+) '
local HEAD = 199   -- what comes before the jws is this long at most, unless keys become longer

local function record_key(owner)
  return key('record', owner)
end

local function former_key(owner)
  return key('former', owner)
end

local function parse_row(text)
  local home, kv, seq, hash, expires, introducer = string.match(text, ROW)
  if not home then return nil end
  return {home = home == '1', kv = tonumber(kv), seq = tonumber(seq), hash = hash,
    expires = tonumber(expires), introducer = introducer, text = text}
end

local function jws_of(text)
  return string.sub(text, select(2, string.find(text, ROW)) + 1)
end

-- A record without its jws; nil where none is held.
local function head_of(owner)
  local text = redis.call('GETRANGE', record_key(owner), 0, HEAD)
  if text == '' then return nil end
  return parse_row(text) or parse_row(redis.call('GET', record_key(owner)))
end

-- Each change has its own number, so that a reader can go on after any of them.
local function note_change(owner)
  redis.call('ZADD', PREFIX .. 'changed', redis.call('HINCRBY', KEYS[1], 'changes', 1), owner)
end

local function count_introduced(introducer, by)
  if introducer == '-' then return end
  local k = PREFIX .. 'introducers'
  if redis.call('HINCRBY', k, introducer, by) <= 0 then redis.call('HDEL', k, introducer) end
end
