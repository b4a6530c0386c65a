#!lua flags=allow-oom
-- include: inbox outbox
-- A courier's word on what it carries (reference/inbox.py defer).
--
-- ARGV[4] inbox, [5] fence, [6] seconds until it is due again, [7] peer or '', [8] code with which
-- new envelopes are refused until then, or ''.
-- Result: {inbox, 1 or 0}; 0 if the courier is fenced off.
if is_foreign() then return foreign() end

local box = load_box(ARGV[4])
if not box or box.home or fenced(box, tonumber(ARGV[5])) then
  return unchanged({ARGV[4], 0})
end
if ARGV[7] ~= '' and not hands_over(box) then
  wait_for(box, ARGV[7])
  save_outboxes()
end
local away, wait_s = away_of(box), tonumber(ARGV[6])
away.deferred, away.closed_until, away.closed_code = precisely() + wait_s, 0, '-'
if ARGV[8] ~= '' then
  away.closed_until, away.closed_code = NOW + math.ceil(wait_s), ARGV[8]
end
write_away(box)
set_due(box, away.deferred)
return committed({ARGV[4], 1})
