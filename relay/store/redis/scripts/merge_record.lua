#!lua
-- include: inbox memory outbox entries home
-- Keep the newer of the held and the given endpoint record, and the mode of the inbox with it, in
-- one step (PROTOCOL.md §7.2, §7.4).
--
-- record:<owner>  kv, seq, hash (hex), jws, home = 1 while it names this relay
-- ARGV[4] owner, [5] kv, [6] seq, [7] hash (64 hex digits), [8] jws, [9] home.
-- Result: {owner, kv, seq, hash, jws, home} of the one kept.
if is_foreign() then return foreign() end

local owner = ARGV[4]
local k = key('record', owner)
local held = redis.call('HMGET', k, 'kv', 'seq', 'hash', 'jws', 'home')

-- Hex digits of one length: compared byte by byte, since `<` on strings asks the server's locale.
local function is_above(one, other)
  for i = 1, #one do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then return a > b end
  end
  return false
end

local function is_newer()
  if not held[1] then return true end
  local kv, seq = tonumber(ARGV[5]), tonumber(ARGV[6])
  if kv ~= tonumber(held[1]) then return kv > tonumber(held[1]) end
  if seq ~= tonumber(held[2]) then return seq > tonumber(held[2]) end
  return is_above(ARGV[7], held[3])
end

if not is_newer() then
  return unchanged({owner, held[1], held[2], held[3], held[4], held[5]})
end
redis.call('HSET', k, 'kv', ARGV[5], 'seq', ARGV[6], 'hash', ARGV[7], 'jws', ARGV[8], 'home', ARGV[9])
local box = load_box(owner)
if box then set_home(box, ARGV[9] == '1') end
return committed({owner, ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]})
