"""Lua that gives an error that is no JSON (a proxy's page, plain text, nothing) the shape of OpenAI's API.

It is all that clients of that API can read. What the page said stays in the gateway, since it may name hosts.
"""

from tierwise.render.envoy.fields import ATTEMPTS_HEADER, TIER_HEADER

SOURCE = (
    r"""
-- True for an error; it then has a JSON body.
local function tell(handle, headers)
  local status, is = tonumber(headers:get(':status')) or 0, headers:get('content-type')
  if status < 400 then return false end
  if is and string.find(string.lower(is), '^application/[%w.+-]*json') then return true end
  local tier, attempts = headers:get('"""
    + TIER_HEADER
    + r"""'), headers:get('"""
    + ATTEMPTS_HEADER
    + r"""')
  local who = tier and tier ~= '-' and 'Tier ' .. tier or 'The gateway'
  if attempts and (tonumber(attempts) or 0) > 1 then who = who .. ', the last of ' .. attempts .. ' attempts,' end
  local kind, code = 'invalid_request_error', 'upstream_error'
  if status == 429 then
    kind, code = 'rate_limit_error', 'rate_limit_exceeded'
  elseif status >= 500 then
    kind = 'server_error'
  end
  local text = string.format(
    '{"error":{"code":"%s","message":"%s answered %d without a JSON body","param":null,"type":"%s"}}',
    code, who, status, kind)
  headers:replace('content-type', 'application/json')
  headers:replace('content-length', tostring(#text))
  for _, name in ipairs({'content-encoding', 'content-disposition', 'content-language', 'etag'}) do
    headers:remove(name)
  end
  handle:body(true):setBytes(text)
  return true
end
"""
)
