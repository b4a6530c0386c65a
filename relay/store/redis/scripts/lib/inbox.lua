-- What every script begins with: the partition's lineage, and reading and writing one inbox.
--
-- KEYS[1] is relay:{p}:state. All other keys are made from its prefix, so they carry the same hash
-- tag and live in the same slot: that is why one declared key is enough, in Cluster too.
-- ARGV[1] token of the generation the caller knows, ARGV[2] commits it has seen in it,
-- ARGV[3] its node, ARGV[4...] what the script is about.
-- Reply: {'ok', commits, result}, or {'generation', number, token, commits} and nothing was done.
--
-- One inbox is one hash, as text, so that a person can read it at night:
--   identity  generation holding epoch        holding: 0 away, a courier has it; 1 home; 2 held, taken
--                                             and read by nobody; 3 home, and all is marked
--   counts    last cursor count bytes ids due floor
--   session   fence open until window_count window_bytes node
--   marks     handed taken mark_before reset_fence
--   refused   count first_at last_at
--   q:SENDER  count bytes of what waits from this sender; q:* of all strangers, q:*PEER of those
--             whom this relay brought
--   away      left_fence deferred closed_until closed_code peer: what an inbox is besides, while its
--             agent lives elsewhere (reference/forwarding.py); - where there is none
--   handoff   one side of its changing relays, as text (protocol/migration_statement.py)
--   mover     there while a mover should look at it, whether or not anything waits
--   tally     last then, was, was bytes, moved, acked, expired, refused, corrupt, kept, dups since then
local PREFIX = string.sub(KEYS[1], 1, -6)
local NODE = ARGV[3]
local MEMORY_STEP = 64   -- an inbox's place among those that remember most, to so many ids
local NEVER = 2 ^ 53
local TALLY = '^' .. string.rep('(%d+) ', 9) .. '(%d+)$'
local IN_TALLY = {W = 4, A = 5, E = 6, R = 7, C = 8, kept = 9, dups = 10}

local function key(kind, name)
  return PREFIX .. kind .. ':' .. name
end

local clock = redis.call('TIME')
local NOW = tonumber(clock[1])

local lineage = redis.call('HMGET', KEYS[1], 'token', 'commits', 'number', 'mark_before', 'ids',
  'quiet_until')
local COMMITS, GENERATION = tonumber(lineage[2] or 0), tonumber(lineage[3] or 0)
local MARK_BEFORE, IDS = tonumber(lineage[4] or 0), tonumber(lineage[5] or 0)
local QUIET_UNTIL = tonumber(lineage[6] or 0)   -- of outboxes of a restored store: no bounces

-- Another lineage, or fewer commits than the caller has seen: the store was rolled back or emptied.
local function is_foreign()
  return lineage[1] ~= ARGV[1] or COMMITS < tonumber(ARGV[2])
end

local function foreign()
  return {'generation', GENERATION, lineage[1] or '', COMMITS}
end

-- Every script that changed something counts, so that a rollback of anything is seen.
local function committed(result)
  redis.call('HSET', KEYS[1], 'commits', COMMITS + 1, 'ids', IDS)
  return {'ok', COMMITS + 1, result}
end

local function unchanged(result)
  return {'ok', COMMITS, result}
end

local function numbers(text, pattern)
  local found = {string.match(text, pattern)}
  for i = 1, #found do found[i] = tonumber(found[i]) end
  return found
end

local function new_epoch(inbox, old)
  return string.sub(redis.sha1hex(table.concat({lineage[1] or '', inbox, clock[1], clock[2], old}, '|')), 1, 20)
end

-- A fence of an emptied or rolled back store must not come again: the clock moves on, also there.
local function fence_above(fence)
  return math.max(fence + 1, NOW * 1000 + math.floor(tonumber(clock[2]) / 1000))
end

-- What the store does for an inbox (migration/model/state.py InboxRole).
local function set_holding(box, digit)
  box.holding, box.home = digit, digit ~= '0'
  box.held, box.doubtful = digit == '2', digit == '3'
end

-- No loops and no tables on the way: every item of an append reads its inbox.
local function read_box(inbox)
  local f = redis.call('HMGET', key('inbox', inbox), 'identity', 'counts', 'session', 'marks', 'tally')
  if not f[1] then return nil end
  local generation, holding, epoch = string.match(f[1], '^(%d+) (%d) (%S+)$')
  local last, cursor, count, bytes, ids, due, floor =
    string.match(f[2], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%-?%d+)$')
  local fence, open, until_at, window_count, window_bytes, node =
    string.match(f[3], '^(%d+) (%d) (%d+) (%d+) (%d+) (%S*)$')
  local handed, taken, mark_before, reset_fence =
    string.match(f[4], '^(%d+) (%d+) (%d+) (%d+)$')
  return {
    inbox = inbox, generation = tonumber(generation), epoch = epoch,
    holding = holding, home = holding ~= '0', held = holding == '2', doubtful = holding == '3',
    tally = f[5] and numbers(f[5], TALLY) or nil,
    last = tonumber(last), cursor = tonumber(cursor), count = tonumber(count),
    bytes = tonumber(bytes), ids = tonumber(ids), due = tonumber(due), floor = tonumber(floor),
    fence = tonumber(fence), open = open == '1', until_at = tonumber(until_at),
    window_count = tonumber(window_count), window_bytes = tonumber(window_bytes), node = node,
    handed = tonumber(handed), taken = tonumber(taken), mark_before = tonumber(mark_before),
    reset_fence = tonumber(reset_fence), quotas = {}, touched = {}, ended = {},
  }
end

local function counts_of(box)
  return string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f',
    box.last, box.cursor, box.count, box.bytes, box.ids, box.due, box.floor)
end

local function marks_of(box)
  return string.format('%.0f %.0f %.0f %.0f', box.handed, box.taken, box.mark_before, box.reset_fence)
end

-- Count what became of an envelope, where that is counted.
local function count_in(box, what)
  if box.tally then box.tally[IN_TALLY[what]] = box.tally[IN_TALLY[what]] + 1 end
end

local function tally_of(box)
  return string.format(string.rep('%.0f ', 9) .. '%.0f', unpack(box.tally))
end

-- Everything but quotas; append writes `counts` alone.
local function write_box(box)
  redis.call('HSET', key('inbox', box.inbox),
    'identity', string.format('%.0f %s %s', box.generation, box.holding, box.epoch),
    'counts', counts_of(box),
    'session', string.format('%.0f %d %.0f %.0f %.0f %s', box.fence, box.open and 1 or 0,
      box.until_at, box.window_count, box.window_bytes, box.node),
    'marks', marks_of(box), unpack(box.tally and {'tally', tally_of(box)} or {}))
end

-- A new epoch: all that is present is marked, and no session goes on (R5).
local function renew(box, mark_before)
  box.epoch = new_epoch(box.inbox, box.epoch)
  box.generation = GENERATION
  box.handed, box.taken = box.last, 0
  box.mark_before = math.max(box.mark_before, mark_before)
  box.fence = fence_above(box.fence)
  box.reset_fence, box.open, box.node = box.fence, false, ''
end

-- The inbox as a changing script sees it. After a rollback each inbox is renewed when it is first
-- touched: atomic, nothing to walk through, nothing to crash in the middle of.
local function load_box(inbox)
  local box = read_box(inbox)
  if box and box.generation ~= GENERATION then
    renew(box, MARK_BEFORE)
    write_box(box)
  end
  return box
end

-- The same for a script that only reads.
local function view_box(inbox)
  local box = read_box(inbox)
  if box and box.generation ~= GENERATION then renew(box, MARK_BEFORE) end
  return box
end

local function new_box(inbox, holding)
  local box = {
    inbox = inbox, generation = GENERATION, epoch = new_epoch(inbox, ''),
    last = 0, cursor = 0, count = 0, bytes = 0, ids = 0, due = NEVER, floor = -1,
    fence = fence_above(0), open = false, until_at = 0, window_count = 64,
    window_bytes = 1048576, node = '', handed = 0, taken = 0, mark_before = MARK_BEFORE,
    reset_fence = 0, quotas = {}, touched = {}, ended = {},
  }
  set_holding(box, holding)
  return box
end

-- What the inbox is besides, while its agent lives elsewhere; read only then.
local function away_of(box)
  if not box.away then
    local text = redis.call('HGET', key('inbox', box.inbox), 'away') or '0 0 0 - -'
    local left, deferred, till, code, peer =
      string.match(text, '^(%d+) ([%d.]+) (%d+) (%S+) (%S+)$')
    box.away = {left_fence = tonumber(left), deferred = tonumber(deferred),
      closed_until = tonumber(till), closed_code = code, peer = peer ~= '-' and peer or nil}
  end
  return box.away
end

local function write_away(box)
  local away = box.away
  redis.call('HSET', key('inbox', box.inbox), 'away', string.format('%.0f %.3f %.0f %s %s',
    away.left_fence, away.deferred, away.closed_until, away.closed_code, away.peer or '-'))
end

-- Why a session is over: the inbox is being moved, its agent's record named other homes then, or a
-- newer session came.
local function ended_by(box, fence)
  if box.held then return 'migrating' end
  return fence < away_of(box).left_fence and 'moved' or 'superseded'
end

-- Whether an entry may have been handed over before, here or by another relay.
local function is_marked(box, seq, marked, created)
  return marked or box.doubtful or seq <= math.max(box.handed, box.taken) or
    (created or 0) < box.mark_before
end

-- Whether the session may read or change this inbox; its refusal if not.
local function fenced(box, fence)
  -- its agent must begin anew; told "superseded" it would stop for good
  if fence < box.reset_fence then return 'inbox_reset' end
  if fence ~= box.fence or not box.open then return ended_by(box, fence) end
  return nil
end

-- What waits of a sender, read once a script and kept in box.quotas.
local function quota_of(box, sender)
  local quota = box.quotas[sender]
  if not quota then
    local text = redis.call('HGET', key('inbox', box.inbox), 'q:' .. sender)
    quota = text and numbers(text, '^(%d+) (%d+)$') or {0, 0}
    box.quotas[sender] = quota
  end
  return quota
end

-- Tell the nodes that hold these inboxes: one hint per commit and node, lost without harm.
local function note(nodes, node, inbox)
  nodes[node] = nodes[node] or {}
  table.insert(nodes[node], inbox)
end

local function wake(nodes)
  for node, inboxes in pairs(nodes) do
    redis.call('SPUBLISH', PREFIX .. 'wake:' .. node, table.concat(inboxes, '\n'))
  end
end
