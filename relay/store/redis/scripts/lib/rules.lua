-- The rules of an inbox, and whom it knows (R7, reference/rules.py).
--
-- known:<inbox>  hash: sender -> A allowed, D denied, or C and when it was noted: a contact;
--                * -> first contact, where it is refused; # -> how many allowed, denied, contacts
local function known_key(inbox)
  return key('known', inbox)
end

-- 'known', 'stranger', or the code of the no; read once a script for each sender of an inbox.
local function standing_of(box, sender)
  box.standings = box.standings or {}
  local standing = box.standings[sender]
  if not standing then
    local found = redis.call('HMGET', known_key(box.inbox), sender, '*')
    if found[1] == 'D' then
      standing = 'blocked'
    elseif found[1] then
      standing = 'known'
    else
      standing = found[2] == 'refuse' and 'not_admitted' or 'stranger'
    end
    box.standings[sender] = standing
  end
  return standing
end

local function write_sizes(inbox, allowed, denied, contacts)
  redis.call('HSET', known_key(inbox), '#', string.format('%.0f %.0f %.0f', allowed, denied, contacts))
end
