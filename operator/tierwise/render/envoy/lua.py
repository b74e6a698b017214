"""The two Lua programs of the gateway.

`SOURCE`: what a request looks like to the tier that an attempt goes to. An upstream filter, it runs once per attempt.
All attempts of a request share their headers, therefore each value is set absolutely, from the request as the client
sent it (filter state) and the tier's parameters (`filter_context`). One program for all clusters, in one VM per worker
(`shared_vm_id`): a VM per cluster costs about 90 KiB and worker.

What it changes in a JSON body, all other bytes stay as they are:
- the value of the top-level `model` becomes the name that the tier serves;
- `"stream": true` gets `stream_options.include_usage`, without which streams report no tokens (not on `/v1/responses`,
  whose streams report them anyway and which knows no such option);
- where the class limits the length of answers, a request that states none gets the class's.

It also notes, for the log that counts, how many tokens the attempt can have cost at most (`bounds`).

`CLIENT_SOURCE`: takes the usage event out of a stream again when its client did not ask for it: much code reads
`choices[0]` of every event, and this one has no choices. An event that arrives in pieces is passed on as it is.
It gives an error that is no JSON OpenAI's shape (`error_lua`).
It also notes, as a stream goes by, how many tokens it can have cost at most so far.

Bounds rest on this: a token has at least one byte of text. Where tokens have none, the event that brought them counts.
"""

from tierwise.render.envoy import error_lua, json_lua
from tierwise.render.envoy.fields import (
    BOUND_METADATA,
    COMPLETION_BOUND,
    CONSUMER_COPY,
    CONSUMER_STATE,
    METADATA,
    NO_BOUND,
    OUTPUT_STATE,
    PATH_STATE,
    PROMPT_BOUND,
    SATURATED_HEADER,
    UNREACHED_HEADER,
)
from tierwise.render.envoy.request_limits import OUTPUT_KEY

VM_ID = "tierwise"

TEMPLATE_TOKENS = 512
"""Added to the bytes of a chat's body: what chat templates, tool instructions and default system prompts add."""

IN_FLIGHT_TOKENS = 64
"""Per choice: tokens that an upstream can have generated when a stream breaks off and the gateway has not yet seen."""

MOST_CHOICES = 256
"""Choices of one request for which tokens in flight are allowed for."""

MOST_TOKENS = 2_000_000
"""No bound is larger: no model takes or gives more. What a client asks for beyond it bounds nothing, and one request
with a made-up number must not empty a budget."""

SOURCE = (
    f"local BOUND, NONE = '{BOUND_METADATA}', '{NO_BOUND}'\n"
    f"local PROMPT, COMPLETION = '{PROMPT_BOUND}', '{COMPLETION_BOUND}'\n"
    f"local CALLER, COPY = '{CONSUMER_STATE}', '{CONSUMER_COPY}'"
    + json_lua.SOURCE
    + r"""
local numbers = {max_tokens = true, max_completion_tokens = true, max_output_tokens = true, n = true, best_of = true}
-- What costs a tier more tokens than it has bytes here: pictures, files, searches, an earlier conversation.
local references = {
  image_url = true, input_image = true, video_url = true, audio_url = true, input_audio = true, file_url = true,
  file_id = true, file_data = true, input_file = true, previous_response_id = true, conversation = true,
  file_search = true, vector_store_ids = true, web_search = true, web_search_preview = true,
  web_search_options = true, code_interpreter = true, mcp = true,
}
-- Paths whose answers are no generated text.
local silent = {['/v1/embeddings'] = true, ['/v1/rerank'] = true, ['/v1/score'] = true}

-- Prompts in a batch: the strings or lists in the list that opens at i. A list of numbers is one prompt.
local function prompts(s, i)
  local count, depth, p = 0, 1, i + 1
  while depth > 0 do
    p = string.find(s, '["%[%]]', p)
    if not p then break end
    local c = string.byte(s, p)
    if depth == 1 and c ~= 93 then count = count + 1 end
    if c == 34 then
      p = string_end(s, p)
      if not p then break end
    else
      depth = depth + (c == 91 and 1 or -1)
    end
    p = p + 1
  end
  return math.max(count, 1)
end

local function bound(n)
  return n and n <= """
    + str(MOST_TOKENS)
    + r""" and string.format('%d', n) or NONE
end

-- The most tokens that an answer can have cost, as text; NONE where the request sets no limit to it.
-- `asked` has the request's numbers, each the last of its name; `limit` is the class's.
local function bounds(s, asked, path, limit)
  if silent[path] then return bound(#s), '0', 1 end
  local batch = path == '/v1/completions'
  local prompt, most = #s + (batch and 0 or """
    + str(TEMPLATE_TOKENS)
    + r"""), nil
  for _, key in ipairs({'max_tokens', 'max_completion_tokens', 'max_output_tokens'}) do
    if asked[key] then most = math.max(most or 0, asked[key]) end
  end
  most = most or limit
  local choices = math.max(asked.n or 1, asked.best_of or 1, 1) * (batch and asked.prompts or 1)
  return (asked.stored or asked.refers) and NONE or bound(prompt), bound(most and most * choices), choices
end

local output_keys = {
  ['/v1/chat/completions'] = {max_tokens = true, max_completion_tokens = true},
  ['/v1/completions'] = {max_tokens = true},
  ['/v1/responses'] = {max_output_tokens = true},
}

-- A key may stand twice; the last one counts, as it does for the gateway's own reading and for most servers.
-- Returns the text for the tier, or nil when it stays as it is, and the numbers that `bounds` needs.
-- With `keys`, one of these has to state a number; when none does, `key_for` gets `most`.
local function rewrite(s, model, force_usage, keys, key_for, most)
  local asked = {}
  local _, open = string.find(s, '^%s*{')
  if not open then return nil, asked end
  local edits, spans, stream, options = {}, {}, false, nil
  local stated, nulls, odd = {}, {}, false
  local close
  close, asked.refers = each_key(s, open, function(key, v)
    if keys and keys[key] then
      local null = string.sub(s, v, v + 3) == 'null'
      local number = string.find(s, '^[-0-9]', v) ~= nil
      stated[key] = number or nil
      if key == key_for then
        if null then nulls[#nulls + 1] = v end
        odd = not null and not number
      end
    end
    if numbers[key] then
      asked[key] = tonumber(string.match(s, '^(%d+)%s*[,}]', v))
    elseif key == 'prompt' then
      asked.prompts = string.byte(s, v) == 91 and prompts(s, v) or 1
      asked.stored = string.byte(s, v) == 123  -- /v1/responses: named, and kept by the provider
    elseif key == 'model' and string.byte(s, v) == 34 then
      spans[#spans + 1] = v
    elseif key == 'stream' then
      stream = string.sub(s, v, v + 3) == 'true'
    elseif key == 'stream_options' then
      options = v
    end
  end, references)
  if not close then return nil, asked end
  for _, v in ipairs(spans) do
    local e = string_end(s, v)
    edits[#edits + 1] = {v + 1, e - 1, model}
  end
  if stream and force_usage then
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
  if keys and not next(stated) then
    asked[key_for] = tonumber(most)
    if odd then
      -- A list or the like: some servers then do as if nothing stood there. The last one counts.
      edits[#edits + 1] = {close, close - 1, ',"' .. key_for .. '":' .. most}
    elseif #nulls > 0 then
      for _, v in ipairs(nulls) do edits[#edits + 1] = {v, v + 3, most} end
    else
      edits[#edits + 1] = {open + 1, open, '"' .. key_for .. '":' .. most .. ','}
    end
  end
  if #edits == 0 then return nil, asked end
  table.sort(edits, function(a, b) return a[1] < b[1] end)
  local out, from = {}, 1
  for _, e in ipairs(edits) do
    out[#out + 1] = string.sub(s, from, e[1] - 1)
    out[#out + 1] = e[3]
    from = e[2] + 1
  end
  out[#out + 1] = string.sub(s, from)
  return table.concat(out), asked
end

function envoy_on_request(handle)
  local tier = handle:filterContext()
  local model = tier:get('model')  -- before the wait for the body, after which `tier` is gone
  local headers = handle:headers()
  local state = handle:streamInfo():filterState()
  local path = state:get('"""
    + PATH_STATE
    + r"""')
  local most = handle:metadata():get('"""
    + OUTPUT_KEY
    + r"""') or tonumber(state:get('"""
    + OUTPUT_STATE
    + r"""') or '')
  local keys = most and output_keys[path]
  local key_for = keys and (keys.max_output_tokens and 'max_output_tokens' or
    keys.max_completion_tokens and tier:get('output_key') or 'max_tokens')
  headers:replace(':path', tier:get('base') .. string.gsub(path, '^/v1', '', 1))
  headers:replace(':authority', tier:get('host'))
  headers:remove('content-length')
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local limit = most and string.format('%d', most)
  local rewritten, asked = rewrite(text, model, path ~= '/v1/responses', keys, key_for, limit)
  if rewritten then body:setBytes(rewritten) end
  -- Once per request: attempts share headers. The log of an attempt sees headers and nothing else of the request. These
  -- reach no tier: HTTP/1.1 has no names that begin with a colon, and Envoy leaves them out.
  headers = handle:headers()
  if not headers:get(COMPLETION) then
    local prompt, completion, choices = bounds(text, asked, path, most)
    headers:replace(PROMPT, prompt)
    headers:replace(COMPLETION, completion)
    headers:replace(COPY, handle:streamInfo():filterState():get(CALLER) or '-')
    if choices > 1 then handle:streamInfo():dynamicMetadata():set(BOUND, 'choices', choices) end
  end
end
"""
)

CLIENT_SOURCE = (
    f"local METADATA, BOUND, IN_FLIGHT = '{METADATA}', '{BOUND_METADATA}', {IN_FLIGHT_TOKENS}\n"
    f"local UNREACHED, SATURATED = '{UNREACHED_HEADER}', '{SATURATED_HEADER}'"
    + json_lua.SOURCE
    + error_lua.SOURCE
    + r"""
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

-- Keys whose text no model generated. Every other text counts, so that a key unknown here makes no count too low.
local frame = {
  id = true, object = true, model = true, role = true, type = true, finish_reason = true, stop_reason = true,
  system_fingerprint = true, service_tier = true, provider = true, item_id = true, obfuscation = true, status = true,
}

-- Bytes of a JSON string's text as UTF-8, escapes undone (a pair of surrogates counts six for four).
local function bytes(text)
  if not string.find(text, '\\', 1, true) then return #text end
  text = string.gsub(text, '\\\\', '/')
  local _, escapes = string.gsub(text, '\\.', '')
  local _, wide = string.gsub(text, '\\u', '')
  return #text - escapes - 2 * wide
end

-- Bytes of generated text in a line of JSON.
local function text_bytes(stream, line)
  -- Most events differ from the one before in one text: what stands around it is compared, and not read again.
  local head, tail = stream.head, stream.tail
  if head and string.sub(line, 1, #head) == head then
    local e = string_end(line, #head)
    if e and string.sub(line, e) == tail then return bytes(string.sub(line, #head + 1, e - 1)) end
  end
  local sum, texts, key, p, first, last = 0, 0, nil, 1, nil, nil
  while true do
    local q = string.find(line, '"', p, true)
    if not q then break end
    local e = string_end(line, q)
    if not e then return sum + #line - q end
    if string.find(line, '^%s*:', e + 1) then
      key = string.sub(line, q + 1, e - 1)
    elseif not frame[key] then
      sum, texts, first, last = sum + bytes(string.sub(line, q + 1, e - 1)), texts + 1, q, e
    end
    p = e + 1
  end
  if texts == 1 then stream.head, stream.tail = string.sub(line, 1, first), string.sub(line, last) end
  return sum
end

-- The most tokens in the lines that `s` completes; `stream` holds what is left of a line, and the sum so far.
local function count(stream, s)
  if stream.rest ~= '' then s = stream.rest .. s end
  local from = 1
  while true do
    local e = string.find(s, '\n', from, true)
    if not e then break end
    if stream.long then
      stream.tokens, stream.long = stream.tokens + e - from, false
    elseif string.sub(s, from, from + 4) == 'data:' then
      local line = string.sub(s, from, e - 1)
      stream.tokens = stream.tokens + math.max(1, text_bytes(stream, line))
      stream.running = stream.running or string.find(line, '"usage"', 1, true)
        and string.find(line, '"usage"%s*:%s*{') and string.find(line, '"choices"%s*:%s*%[%s*{') and true
    end
    from = e + 1
  end
  stream.rest = string.sub(s, from)
  if #stream.rest > 65536 or stream.long then  -- not kept any longer: each byte counts
    stream.tokens, stream.rest, stream.long = stream.tokens + #stream.rest, '', true
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = headers:get('content-type')
  headers:remove(UNREACHED)  -- between the inner listeners and the router
  headers:remove(SATURATED)
  if tell(handle, headers) then return end
  if not kind or string.sub(kind, 1, 17) ~= 'text/event-stream' then return end
  local asked = handle:streamInfo():dynamicMetadata():get(METADATA)
  local silent = asked and asked['stream'] == true and asked['include_usage'] ~= true
  if silent then headers:remove('content-length') end
  local bound = handle:streamInfo():dynamicMetadata():get(BOUND)
  local margin = IN_FLIGHT * math.min(bound and bound['choices'] or 1, """
    + str(MOST_CHOICES)
    + r""")
  local stream, noted, running = {tokens = 0, rest = '', long = false, running = false}, 0, false
  -- Ahead of the count, for nothing runs here when a stream breaks off; and by an eighth, so that few events note it.
  local function note()
    local most = stream.tokens + text_bytes(stream, stream.rest) + margin
    if most > noted then
      noted = math.ceil(most * 1.125)
      handle:streamInfo():dynamicMetadata():set(BOUND, 'stream', noted)
    end
    if stream.running and not running then
      running = true
      handle:streamInfo():dynamicMetadata():set(BOUND, 'running', true)
    end
  end
  note()
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    if length > 0 then
      local s = chunk:getBytes(0, length)
      count(stream, s)
      note()
      local rest = silent and without_usage(s)
      if rest then chunk:setBytes(rest) end
    end
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set(BOUND, 'stream', stream.tokens + text_bytes(stream, stream.rest))
  if running then metadata:set(BOUND, 'running', false) end
end
"""
)
