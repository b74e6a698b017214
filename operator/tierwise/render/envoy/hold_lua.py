"""The Lua program that obeys a provider's `Retry-After`: until then it gets nothing, and the next tier is tried.

A filter of the relay, so that its answer is one for the router (see `relay`). What it remembers is of one
worker thread: each learns of a limit by its own first refusal.
"""

from tierwise.render.envoy.fields import HELD_HEADER, PROVIDER_HEADER

MOST_SECONDS = 600
"""A provider that asks for a longer pause is asked again after this one."""

SOURCE = (
    f"local MOST = {MOST_SECONDS}\n"
    f"local HELD, PROVIDER = '{HELD_HEADER}', '{PROVIDER_HEADER}'\n"
    r"""
local MONTHS = {Jan=1, Feb=2, Mar=3, Apr=4, May=5, Jun=6, Jul=7, Aug=8, Sep=9, Oct=10, Nov=11, Dec=12}
local held = {}

-- Seconds since 1970 of a date such as "Sun, 06 Nov 1994 08:49:37 GMT"; nil when it is none.
local function of_date(s)
  local d, name, y, h, m, sec = string.match(s, '^%a+, (%d%d) (%a%a%a) (%d%d%d%d) (%d%d):(%d%d):(%d%d) GMT$')
  local month = name and MONTHS[name]
  if not month then return nil end
  local year = tonumber(y)
  if month <= 2 then year = year - 1 end
  local era = math.floor(year / 400)
  local of_era = year - era * 400
  local day = math.floor((153 * (month + (month > 2 and -3 or 9)) + 2) / 5) + tonumber(d) - 1
  local days = era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + day - 719468
  return ((days * 24 + tonumber(h)) * 60 + tonumber(m)) * 60 + tonumber(sec)
end

local function now(handle)
  return tonumber(handle:timestamp()) / 1000
end

function envoy_on_request(handle)
  local tier = handle:headers():get(PROVIDER) or ''
  handle:streamInfo():dynamicMetadata():set('tierwise.hold', 'tier', tier)
  local till = held[tier]
  if not till then return end
  local left = till - now(handle)
  if left <= 0 then
    held[tier] = nil
    return
  end
  handle:respond({
    [':status'] = '429',
    ['retry-after'] = string.format('%d', math.ceil(left)),
    [HELD] = 'retry-after',
  }, 'held')
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(':status')
  if status ~= '429' and status ~= '503' then return end
  local said = headers:get('retry-after')
  if not said or headers:get(HELD) then return end
  local at = now(handle)
  local pause = tonumber(string.match(said, '^%d+%.?%d*$'))
  if not pause then
    local till = of_date(said)
    if not till then return end
    pause = till - at
  end
  if pause > 0 then
    local tier = handle:streamInfo():dynamicMetadata():get('tierwise.hold')['tier']
    held[tier] = at + math.min(pause, MOST)
  end
end
"""
)
