"""How Lua programs of the gateway read JSON bodies: by position, without a tree, so that all else stays as it is."""

SOURCE = r"""
-- The end of the JSON string whose opening quote is at i. A plain search for the quote is many times faster than a
-- pattern, and prompts are long; a quote after an odd number of backslashes is part of the string.
local function string_end(s, i)
  local q = i + 1
  while true do
    local e = string.find(s, '"', q, true)
    if not e then return nil end
    local b = e - 1
    while b > i and string.byte(s, b) == 92 do b = b - 1 end
    if (e - b) % 2 == 1 then return e end
    q = e + 1
  end
end

-- A key as JSON readers understand it: "mod\u0065l" is model, for the gateway's own reading too.
local function plain(key)
  if not string.find(key, '\\', 1, true) then return key end
  return (string.gsub(key, '\\u00(%x%x)', function(hex) return string.char(tonumber(hex, 16)) end))
end

-- Calls found(key, value, at) for each key of the object that opens at i: where its value begins, and it itself.
-- Returns the position of the closing brace, or nil when the text is no object, and whether a short text in it is one
-- of `names`, if there are any.
local function each_key(s, i, found, names)
  local depth, p, named = 1, i + 1, false
  while true do
    p = string.find(s, '["{}%[%]]', p)
    if not p then return nil end
    local c = string.byte(s, p)
    if c == 34 then
      local e = string_end(s, p)
      if not e then return nil end
      if depth == 1 then
        local _, v = string.find(s, '^%s*:%s*', e + 1)
        if v then found(plain(string.sub(s, p + 1, e - 1)), v + 1, p) end
      end
      if names and e - p < 24 and names[string.sub(s, p + 1, e - 1)] then named = true end
      p = e + 1
    else
      if c == 123 or c == 91 then depth = depth + 1 else depth = depth - 1 end
      if depth == 0 then return p, named end
      p = p + 1
    end
  end
end
"""
