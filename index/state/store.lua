-- The one script that writes guarded state. KEYS[1] is the owner hash of the tag; the keys of the operations follow.
-- ARGV[1] is the command:
--   claim  token generation group log_generation n (topic identity)*n -> {"ok", previous_token, new_logs, (position)*n} | {"refused", stored}
--   commit token topic expected position n (other_topic its_position)*n nops (op)*
--                                                                          -> {"ok"} | {"token"|"position"|"beside", stored}
--   beat   token caught_up n (topic end_offset)*n                              -> {"ok"} | {"token"}
--   read   (count (name)*)* -> {positions, (fields)*}, each {(name, value)*}; count -1 asks for all fields of a hash
--                             KEYS[2] and later ones are the hashes
--   swap   n (name is_there value)*n m (name is_there value)*m                 -> {"ok"} | {"differs"}
--                             KEYS[1] is no owner but the hash whose n fields must be as given and whose m fields are set
-- An op is: code, index of its key in KEYS, count, arguments. See index/store.py for their meaning.
local owner, command = KEYS[1], ARGV[1]
redis.replicate_commands()

local function claim()
  local token, generation, group, log_generation = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
  local stored = redis.call('HMGET', owner, 'generation', 'group', 'run_id', 'token')
  -- Of the very node that has this slot: asked from outside, it could be another one's after a failover.
  local run_id = KEYS[2] and string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  if stored[2] == group and stored[1] and tonumber(stored[1]) > generation then
    return {'refused', stored[1]}
  end
  redis.call('HSET', owner, 'token', token, 'generation', generation, 'group', group)
  if KEYS[2] and (stored[3] ~= run_id or redis.call('EXISTS', KEYS[2]) == 0) then
    -- The item log is a new one: followers reload. One entry keeps the key alive and marks the start.
    local position = redis.call('HINCRBY', owner, 'item_position', 1)
    redis.call('DEL', KEYS[2])
    redis.call('XADD', KEYS[2], position .. '-0', 'i', '')
    redis.call('HSET', owner, 'run_id', run_id, 'item_log', log_generation)
  end
  local answer, renewed = {'ok', stored[4] or '', ''}, {}
  for i = 7, 6 + 2 * tonumber(ARGV[6]), 2 do
    local topic, identity = ARGV[i], ARGV[i + 1]
    local known = redis.call('HGET', owner, 'log:' .. topic)
    if known ~= identity then
      redis.call('HSET', owner, 'log:' .. topic, identity, 'pos:' .. topic, 0)
      redis.call('HINCRBY', owner, 'logs:' .. topic, 1)
      redis.call('HDEL', owner, 'beat', 'seen:' .. topic) -- of the log before
      if known then renewed[#renewed + 1] = topic end
    end
    answer[#answer + 1] = redis.call('HGET', owner, 'pos:' .. topic) or '0'
  end
  answer[3] = table.concat(renewed, ',')
  return answer
end

local function append_to_item_log(item_key, item)
  local position = redis.call('HINCRBY', owner, 'item_position', 1)
  redis.call('HSET', item_key, 'n', position)
  redis.call('ZADD', KEYS[3], position, item)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100000, position .. '-0', 'i', item)
end

local function keep_fields(key, prefix, first, last)
  local kept = {}
  for i = first, last do kept[ARGV[i]] = true end
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, #prefix) == prefix and not kept[name] then redis.call('HDEL', key, name) end
  end
end

local function set_aside(key, first, last)
  local was, comes = redis.call('HGET', key, ARGV[first]), ARGV[first + 1]
  if was == comes then return end
  for i = first + 2, last do
    local value = was and redis.call('HGET', key, ARGV[i])
    if value then redis.call('HSET', key, ARGV[i] .. ':' .. was, value) end
    redis.call('HDEL', key, ARGV[i], ARGV[i] .. ':' .. comes)
  end
end

local function commit()
  local token, topic, expected, position = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
  local stored = redis.call('HMGET', owner, 'token', 'pos:' .. topic)
  if stored[1] ~= token then return {'token', stored[2] or '0'} end
  if stored[2] ~= expected then return {'position', stored[2] or '0'} end
  local at = 7
  for _ = 1, tonumber(ARGV[6]) do
    local other = redis.call('HGET', owner, 'pos:' .. ARGV[at])
    if other ~= ARGV[at + 1] then return {'beside', other or '0'} end
    at = at + 2
  end
  local ops = tonumber(ARGV[at])
  at = at + 1
  for _ = 1, ops do
    local code, key, count = ARGV[at], KEYS[tonumber(ARGV[at + 1])], tonumber(ARGV[at + 2])
    local first, last = at + 3, at + 2 + count
    if code == 'hset' then redis.call('HSET', key, unpack(ARGV, first, last))
    elseif code == 'hdel' then redis.call('HDEL', key, unpack(ARGV, first, last))
    elseif code == 'hkeep' then keep_fields(key, ARGV[first], first + 1, last)
    elseif code == 'haside' then set_aside(key, first, last)
    elseif code == 'hincr' then
      for i = first, last, 2 do redis.call('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
    elseif code == 'delete' then redis.call('DEL', key)
    elseif code == 'zadd' then
      for i = first, last, 2 do redis.call('ZADD', key, ARGV[i + 1], ARGV[i]) end
    elseif code == 'zrem' then redis.call('ZREM', key, unpack(ARGV, first, last))
    elseif code == 'sadd' then redis.call('SADD', key, unpack(ARGV, first, last))
    elseif code == 'srem' then redis.call('SREM', key, unpack(ARGV, first, last))
    elseif code == 'log' then append_to_item_log(key, ARGV[first])
    else return redis.error_reply('unknown operation ' .. code) end
    at = last + 1
  end
  redis.call('HSET', owner, 'pos:' .. topic, position)
  return {'ok'}
end

local function beat()
  if redis.call('HGET', owner, 'token') ~= ARGV[2] then return {'token'} end
  for i = 5, 4 + 2 * tonumber(ARGV[4]), 2 do
    redis.call('HSET', owner, 'seen:' .. ARGV[i], ARGV[i + 1])
  end
  if ARGV[3] == '1' then redis.call('HINCRBY', owner, 'beat', 1) end
  return {'ok'}
end

local function read()
  local answer, positions, at = {}, {}, 2
  for _, name in ipairs(redis.call('HKEYS', owner)) do
    if string.sub(name, 1, 4) == 'pos:' then
      positions[#positions + 1] = name
      positions[#positions + 1] = redis.call('HGET', owner, name)
    end
  end
  answer[1] = positions
  for i = 2, #KEYS do
    local count, found = tonumber(ARGV[at]), {}
    if count < 0 then found = redis.call('HGETALL', KEYS[i]) end
    for j = at + 1, at + count do
      local value = redis.call('HGET', KEYS[i], ARGV[j])
      if value then
        found[#found + 1] = ARGV[j]
        found[#found + 1] = value
      end
    end
    at = at + 1 + math.max(0, count)
    answer[i] = found
  end
  return answer
end

local function swap()
  local at = 3
  for _ = 1, tonumber(ARGV[2]) do
    local stored = redis.call('HGET', owner, ARGV[at])
    if stored ~= (ARGV[at + 1] == '1' and ARGV[at + 2]) then return {'differs'} end
    at = at + 3
  end
  for i = at + 1, at + 3 * tonumber(ARGV[at]), 3 do
    if ARGV[i + 1] == '1' then redis.call('HSET', owner, ARGV[i], ARGV[i + 2])
    else redis.call('HDEL', owner, ARGV[i]) end
  end
  return {'ok'}
end

if command == 'claim' then return claim() end
if command == 'commit' then return commit() end
if command == 'swap' then return swap() end
if command == 'read' then return read() end
if command == 'beat' then return beat() end
return redis.error_reply('unknown command ' .. tostring(command))
