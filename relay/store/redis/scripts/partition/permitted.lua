#!lua flags=no-writes,allow-oom
-- Which commands the user of this connection may not run; asks only, and runs none of them.
--
-- ARGV: commands with arguments, words parted by spaces. Result: places in ARGV of those denied.
local denied = {}
for at, line in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
  if not redis.acl_check_cmd(unpack(words)) then denied[#denied + 1] = at end
end
return denied
