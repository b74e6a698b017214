"""The two Lua programs of the gateway.

`SOURCE`: what a request looks like to the tier that an attempt goes to. An upstream filter, it runs once per attempt.
All attempts of a request share their headers, therefore each value is set absolutely, from the request as the client
sent it (filter state) and the tier's parameters (`filter_context`). One program for all clusters, in one VM per worker
(`shared_vm_id`): a VM per cluster costs about 90 KiB and worker.

What it changes in a JSON body, all other bytes stay as they are:
- the value of the top-level `model` becomes the name that the tier serves;
- `"stream": true` gets `stream_options.include_usage`, without which streams report no tokens.

`CLIENT_SOURCE`: takes the usage event out of a stream again when its client did not ask for it: much code reads
`choices[0]` of every event, and this one has no choices. An event that arrives in pieces is passed on as it is.
"""

from tierwise.render.envoy.fields import METADATA, PATH_STATE

VM_ID = "tierwise"

SOURCE = (
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

-- A key as JSON readers understand it: "mod\u0065l" is model, for the gateway's own reading too.
local function plain(key)
  if not string.find(key, '\\', 1, true) then return key end
  return (string.gsub(key, '\\u00(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Calls found(key, start) for each key of the object that opens at i; start is where the key's value begins.
-- Returns the position of the closing brace, or nil when the text is no object.
local function each_key(s, i, found)
  local depth, p = 1, i + 1
  while true do
    p = string.find(s, '["{}%[%]]', p)
    if not p then return nil end
    local c = string.byte(s, p)
    if c == 34 then
      local e = string_end(s, p)
      if not e then return nil end
      if depth == 1 then
        local _, v = string.find(s, '^%s*:%s*', e + 1)
        if v then found(plain(string.sub(s, p + 1, e - 1)), v + 1) end
      end
      p = e + 1
    else
      if c == 123 or c == 91 then depth = depth + 1 else depth = depth - 1 end
      if depth == 0 then return p end
      p = p + 1
    end
  end
end

-- A key may stand twice; the last one counts, as it does for the gateway's own reading and for most servers.
local function rewrite(s, model)
  local _, open = string.find(s, '^%s*{')
  if not open then return nil end
  local edits, spans, stream, options = {}, {}, false, nil
  local close = each_key(s, open, function(key, v)
    if key == 'model' and string.byte(s, v) == 34 then
      spans[#spans + 1] = v
    elseif key == 'stream' then
      stream = string.sub(s, v, v + 3) == 'true'
    elseif key == 'stream_options' then
      options = v
    end
  end)
  if not close then return nil end
  for _, v in ipairs(spans) do
    local e = string_end(s, v)
    edits[#edits + 1] = {v + 1, e - 1, model}
  end
  if stream then
    local wanted = '"stream_options":{"include_usage":true}'
    if not options then
      local comma = string.find(s, '^%s*}', open + 1) and '' or ','
      edits[#edits + 1] = {open + 1, open, wanted .. comma}
    elseif string.byte(s, options) == 123 then
      local usage = nil
      local last = each_key(s, options, function(key, v) if key == 'include_usage' then usage = v end end)
      if last and usage then
        if string.sub(s, usage, usage + 4) == 'false' then edits[#edits + 1] = {usage, usage + 4, 'true'} end
      elseif last then
        local comma = string.find(s, '^%s*}', options + 1) and '' or ','
        edits[#edits + 1] = {options + 1, options, '"include_usage":true' .. comma}
      end
    elseif string.sub(s, options, options + 3) == 'null' then
      edits[#edits + 1] = {options, options + 3, '{"include_usage":true}'}
    end
  end
  if #edits == 0 then return nil end
  table.sort(edits, function(a, b) return a[1] < b[1] end)
  local out, from = {}, 1
  for _, e in ipairs(edits) do
    out[#out + 1] = string.sub(s, from, e[1] - 1)
    out[#out + 1] = e[3]
    from = e[2] + 1
  end
  out[#out + 1] = string.sub(s, from)
  return table.concat(out)
end

function envoy_on_request(handle)
  local tier = handle:filterContext()
  local model = tier:get('model')  -- before the wait for the body, after which `tier` is gone
  local headers = handle:headers()
  local path = handle:streamInfo():filterState():get('"""
    + PATH_STATE
    + r"""')
  headers:replace(':path', tier:get('base') .. string.gsub(path, '^/v1', '', 1))
  headers:replace(':authority', tier:get('host'))
  headers:remove('content-length')
  local body = handle:body(true)
  local rewritten = rewrite(body:getBytes(0, body:length()), model)
  if rewritten then body:setBytes(rewritten) end
end
"""
)

CLIENT_SOURCE = (
    r"""
local function without_usage(s)
  local kept, from, removed = {}, 1, false
  while true do
    local _, e = string.find(s, '\n\n', from, true)
    if not e then break end
    local event = string.sub(s, from, e)
    if string.find(event, '"choices"%s*:%s*%[%s*%]') and string.find(event, '"usage"%s*:%s*{') then
      removed = true
    else
      kept[#kept + 1] = event
    end
    from = e + 1
  end
  if not removed then return nil end
  kept[#kept + 1] = string.sub(s, from)
  return table.concat(kept)
end

function envoy_on_response(handle)
  local kind = handle:headers():get('content-type')
  if not kind or string.sub(kind, 1, 17) ~= 'text/event-stream' then return end
  local asked = handle:streamInfo():dynamicMetadata():get('"""
    + METADATA
    + r"""')
  if not asked or asked['stream'] ~= true or asked['include_usage'] == true then return end
  handle:headers():remove('content-length')
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      local rest = without_usage(chunk:getBytes(0, length))
      if rest then chunk:setBytes(rest) end
    end
  end
end
"""
)
