"""The Lua program that gives requests whose prompts start alike an equal header, for `affinity.prefix`.

A filter of the listener that runs on routes that ask for it. What counts as the start of the prompt, as it stands in
the body, at most so many bytes of it:

- chat: `messages` up to the end of the first message of a user. Later turns of a conversation only add to it, so that
  they find the replica that has the earlier ones in its cache;
- responses: `instructions`, then `input` as above where it is a list, else its text;
- all others: `prompt` or `input`.
"""

from tierwise.render.envoy.fields import PREFIX_HEADER

NAME = "prefix"
"""Of the script, by which routes ask for it."""

SOURCE = (
    f"local HEADER = '{PREFIX_HEADER}'\n"
    r"""
-- The end of the JSON string whose opening quote is at i.
local function string_end(s, i)
  local q = i + 1
  while true do
    local e = string.find(s, '["\\]', q)
    if not e then return nil end
    if string.byte(s, e) == 34 then return e end
    q = e + 2
  end
end

-- Where the values of the top-level keys begin that hold the prompt.
local function starts(s)
  local _, open = string.find(s, '^%s*{')
  if not open then return {} end
  local found, depth, p = {}, 1, open + 1
  while depth > 0 do
    p = string.find(s, '["{}%[%]]', p)
    if not p then break end
    local c = string.byte(s, p)
    if c == 34 then
      local e = string_end(s, p)
      if not e then break end
      if depth == 1 then
        local _, v = string.find(s, '^%s*:%s*', e + 1)
        local key = v and string.sub(s, p + 1, e - 1)
        if key == 'messages' or key == 'prompt' or key == 'input' or key == 'instructions' then found[key] = v + 1 end
      end
      p = e + 1
    else
      if c == 123 or c == 91 then depth = depth + 1 else depth = depth - 1 end
      p = p + 1
    end
  end
  return found
end

-- Where the first message of a user ends in the list that opens at i; nil when that is not before `last`.
local function first_turn(s, i, last)
  local depth, p, user = 1, i + 1, false
  while true do
    p = string.find(s, '["{}%[%]]', p)
    if not p or p > last then return nil end
    local c = string.byte(s, p)
    if c == 34 then
      local e = string_end(s, p)
      if not e then return nil end
      if depth == 2 and string.find(s, '^"role"%s*:%s*"user"', p) then user = true end
      p = e + 1
    else
      if c == 123 or c == 91 then depth = depth + 1 else depth = depth - 1 end
      if depth == 0 or (depth == 1 and user) then return p end
      p = p + 1
    end
  end
end

local function start_of(s, v, most)
  local last = v + most - 1
  local c = string.byte(s, v)
  if c == 91 then last = first_turn(s, v, last) or last end
  if c == 34 then last = math.min(string_end(s, v) or last, last) end
  return string.sub(s, v, last)
end

-- 64 bits of two sums; the products stay below 2^53.
local function sum(s)
  local a, b = 5381, 1
  for i = 1, #s do
    local c = string.byte(s, i)
    a = (a * 33 + c) % 4294967296
    b = (b * 65599 + c) % 4294967296
  end
  return string.format('%08x%08x', a, b)
end

function envoy_on_request(handle)
  local most = handle:filterContext():get('characters')
  local body = handle:body()
  if not body then return end
  local s = body:getBytes(0, body:length())
  local at = starts(s)
  local prompt = at.messages or at.prompt or at.input
  if not prompt then return end
  local text = at.instructions and start_of(s, at.instructions, most) or ''
  if #text < most then text = text .. start_of(s, prompt, most - #text) end
  handle:headers():replace(HEADER, sum(text))  -- and the route is looked for again, by the filter's default
end
"""
)
