#!lua flags=allow-oom
-- include: inbox memory outbox entries
-- Delete what agents have durably processed or refuse (reference/inbox.py ack and take_ack, R2).
-- May run when memory is full: else no inbox would ever drain.
--
-- ARGV[4...] per request: inbox, fence, epoch, upto, 1 if `upto` covers what take gave, number of
-- seqs, seqs..., number of refusals, (seq, code)..., SHA-256 of a receipt and the peer that
-- gave it, where the seqs were forwarded, or ''.
-- Result, per request: {inbox, 'acked', cursor, covered seqs...} or {inbox, code}.
if is_foreign() then return foreign() end

local at, changed = 4, false

local function next_arg()
  at = at + 1
  return ARGV[at - 1]
end

local function next_request()
  local request = {inbox = next_arg(), fence = tonumber(next_arg()), epoch = next_arg(),
    upto = tonumber(next_arg()), taken = next_arg() == '1', seqs = {}, refuse = {}}
  for i = 1, tonumber(next_arg()) do request.seqs[i] = tonumber(next_arg()) end
  for i = 1, tonumber(next_arg()) do request.refuse[i] = {tonumber(next_arg()), next_arg()} end
  request.forwarded = next_arg()
  request.is_forwarded = request.forwarded ~= ''
  return request
end

-- Only a session without a connection: the node itself looks after the others (inbox/model/delivery.py).
local function names_unknown(box, request)
  if request.upto > math.max(box.taken, box.cursor) then return true end
  for _, seq in ipairs(request.seqs) do
    if seq > box.last then return true end
  end
  for _, refusal in ipairs(request.refuse) do
    if refusal[1] > box.last then return true end
  end
  return false
end

local function objection(box, request)
  if not box or request.epoch ~= box.epoch then return 'inbox_reset' end
  local no = fenced(box, request.fence)
  if no then return no end
  if request.taken and names_unknown(box, request) then return 'bad_frame' end
  if box.home and request.is_forwarded then return 'superseded' end
  local names = request.taken or #request.seqs > 0
  if not box.home and names and not request.is_forwarded then return 'bad_frame' end
  return nil
end

-- A courier refuses what its agent's home did not take: only marks say that it was handed over.
local function maybe_delivered(box, item)
  return box.home or is_marked(box, item.seq, item.marked, item.created)
end

local function end_covered(box, request, covered, fate, proof)
  each_entry(box, box.cursor + 1, math.min(request.upto, box.last), function(item)
    if not box.ended[item.seq] then
      covered[#covered + 1] = item.seq
      finish(box, item, fate, proof)
    end
    return false
  end)
end

local function ack(request)
  local box = load_box(request.inbox)
  local no = objection(box, request)
  if no then return {request.inbox, no} end
  local reply = {request.inbox, 'acked', 0}
  local covered, fate, proof = {}, 'A', nil
  if request.is_forwarded then
    fate, proof = 'W', pack_proof(string.sub(request.forwarded, 1, 32), string.sub(request.forwarded, 33))
  end
  -- first: a seq that is named in both, or covered by `upto`, counts as refused
  for _, refusal in ipairs(request.refuse) do
    local item = end_entry(box, refusal[1], 'R')
    if item then intend(box, item, refusal[2], NOW, maybe_delivered(box, item)) end
  end
  if request.taken then end_covered(box, request, covered, fate, proof) end
  for _, seq in ipairs(request.seqs) do end_entry(box, seq, fate, proof) end
  local before = box.cursor
  absorb(box, request.upto)
  -- an ack that comes again ends nothing
  if box.touched.ended or box.cursor ~= before or not box.home then
    save(box)
    changed = true
  end
  -- a courier that gets on keeps what was lent to it
  if not box.home then set_due(box, precisely() + LEASE_S) end
  reply[3] = box.cursor
  for _, seq in ipairs(covered) do reply[#reply + 1] = seq end
  return reply
end

local replies = {}
while at <= #ARGV do
  replies[#replies + 1] = ack(next_request())
end
if changed then return committed(replies) end
return unchanged(replies)
