"""The Lua program for what only some providers need. It runs after `lua.SOURCE` and only where a tier asks for it.

- `token_units`: it estimates what the request costs, a quarter of its bytes for the prompt and what it may generate at
  most, for the relay's bucket (see `relay`).
- `refuses_options`: it takes `stream_options` out of the body, all other bytes stay as they are.
"""

from tierwise.render.envoy import json_lua
from tierwise.render.envoy.fields import PATH_STATE, TOKEN_UNITS_HEADER

ASSUMED_TOKENS = 512
"""Tokens of an answer whose request states no most."""

BUCKET_UNITS = 1_000_000_000
"""What a provider's full bucket holds: a tenth of its limit per minute, whatever that is."""

SOURCE = (
    f"local ASSUMED, BUCKET, TOKENS = {ASSUMED_TOKENS}, {BUCKET_UNITS}, '{TOKEN_UNITS_HEADER}'"
    + json_lua.SOURCE
    + r"""
-- The text without the key that begins at p and its value, which begins at v, with one comma.
local function without(s, p, v)
  local e
  if string.byte(s, v) == 123 then
    e = each_key(s, v, function() end)
  else
    _, e = string.find(s, '^[%w.+-]+', v)
  end
  if not e then return s end
  local _, comma = string.find(s, '^%s*,%s*', e + 1)
  if comma then return string.sub(s, 1, p - 1) .. string.sub(s, comma + 1) end
  local before = string.gsub(string.sub(s, 1, p - 1), ',%s*$', '')
  return before .. string.sub(s, e + 1)
end

function envoy_on_request(handle)
  local tier = handle:filterContext()
  local token_units, refuses = tier:get('token_units') or 0, tier:get('refuses_options')
  local path = handle:streamInfo():filterState():get('"""
    + PATH_STATE
    + r"""')
  local body = handle:body(true)
  local length = body:length()
  local s = body:getBytes(0, length)
  local _, open = string.find(s, '^%s*{')
  local answer, key, value
  if open then
    each_key(s, open, function(name, v, p)
      if name == 'stream_options' then
        key, value = p, v
      elseif name == 'max_tokens' or name == 'max_completion_tokens' or name == 'max_output_tokens' then
        local most = tonumber(string.match(s, '^%d+', v))
        if most then answer = math.max(answer or 0, most) end
      end
    end)
  end
  if token_units > 0 then
    if not answer then
      answer = (string.find(path, 'completions$') or string.find(path, 'responses$')) and ASSUMED or 0
    end
    local units = math.ceil((math.ceil(length / 4) + answer) * token_units)
    handle:headers():replace(TOKENS, string.format('%d', math.min(math.max(units, 1), BUCKET)))
  end
  if refuses and key then body:setBytes(without(s, key, value)) end
end
"""
)
