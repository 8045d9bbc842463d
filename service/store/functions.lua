#!lua name=streamcell_1
-- What StreamCell's replicas do with sessions in a shared store. Valkey and Redis 7 run this text; functions.py loads it.
--
-- sc:s:{session in hex}  hash, a session's record:
--     owner    boot id of the replica that has it; empty: none
--     fence    number of the latest claim; no two claims have the same
--     at       messages applied and timesteps told of a generation, 20 digits each
--     image    the state, sealed; empty: nothing was put yet
--     token, tenant, model   of the opening
--     attempt  of the latest opening that was taken, 20 digits
--     freed    if nobody owns it: since when, in the store's milliseconds
-- sc:l:{boot id}  a replica's lease: its address, for some seconds
-- sc:fence        the latest fence
-- sc:a:{boot id}  channel on which that replica is asked for sessions

local RECORD = 'sc:s:'
local LEASE = 'sc:l:'
local ASKED = 'sc:a:'

local function now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function now_ms()
  return string.format('%.0f', math.floor(now_us() / 1000))
end

-- Above all fences before it, also if the counter was lost with the store's data.
local function next_fence(key)
  local last = tonumber(redis.call('GET', key) or '0') or 0
  local fence = string.format('%.0f', math.max(last + 1, now_us()))
  redis.call('SET', key, fence)
  return fence
end

-- keys: lease, fence counter. a: address, milliseconds. A fence that all claims under the lease are above, or nothing.
local function join(keys, a)
  if not redis.call('SET', keys[1], a[1], 'NX', 'PX', a[2]) then return false end
  return next_fence(keys[2])
end

-- keys: lease. a: address, milliseconds. 0: the lease is lost, and stays so.
local function renew(keys, a)
  if redis.call('SET', keys[1], a[1], 'XX', 'PX', a[2]) then return 1 end
  return 0
end

-- keys: lease.
local function leave(keys, a)
  return redis.call('DEL', keys[1])
end

-- keys: lease, record, fence counter.
-- a: boot id, token, attempt, 1 if the same claim was sent before, tenant, model, 1 if the caller may create,
--    the fence under which the caller has it or 0, 1 to ask its owner for it, most bytes to answer, at, image
-- OK: fence, at, image, 1 if the caller had it already.
local function claim(keys, a)
  if redis.call('EXISTS', keys[1]) == 0 then return {'FENCED'} end
  local kind = redis.call('TYPE', keys[2])['ok']
  if kind == 'none' then
    if a[7] ~= '1' then return {'ABSENT'} end
    local fence = next_fence(keys[3])
    redis.call('HSET', keys[2], 'owner', a[1], 'fence', fence, 'at', a[11], 'image', a[12], 'token', a[2],
      'attempt', a[3], 'tenant', a[5], 'model', a[6])
    return {'OK', fence, a[11], a[12], '0'}
  end
  if kind ~= 'hash' then return {'FOREIGN'} end
  local h = redis.call('HMGET', keys[2], 'owner', 'fence', 'at', 'token', 'attempt', 'tenant')
  for i = 1, 6 do if not h[i] then return {'FOREIGN'} end end
  if #h[3] ~= 40 or #h[5] ~= 20 then return {'FOREIGN'} end
  if h[4] ~= a[2] or h[6] ~= a[5] then return {'ABSENT'} end
  if a[3] < h[5] or (a[3] == h[5] and a[4] ~= '1') then return {'LATE'} end
  if h[1] ~= '' and h[1] ~= a[1] then
    local address = redis.call('GET', LEASE .. h[1])
    if address then
      if a[9] == '1' then redis.call('PUBLISH', ASKED .. h[1], string.sub(keys[2], #RECORD + 1)) end
      return {'ELSEWHERE', h[1], address}
    end
  end
  if h[1] == a[1] and h[2] == a[8] then
    redis.call('HSET', keys[2], 'attempt', a[3])
    return {'OK', h[2], h[3], '', '1'}
  end
  if redis.call('HSTRLEN', keys[2], 'image') > tonumber(a[10]) then return {'LARGE'} end
  local fence = next_fence(keys[3])
  redis.call('HSET', keys[2], 'owner', a[1], 'fence', fence, 'attempt', a[3])
  return {'OK', fence, h[3], redis.call('HGET', keys[2], 'image') or '', '0'}
end

-- keys: lease, records. a: boot id, 1 to give the sessions away, then fence, at and image for each.
-- A letter for each: 1 stored, at least so far; 0 not the caller's.
local function put(keys, a)
  if redis.call('EXISTS', keys[1]) == 0 then return 'FENCED' end
  local boot, gives, told, freed = a[1], a[2] == '1', {}, nil
  for i = 2, #keys do
    local at = 3 * i - 3
    local h = redis.pcall('HMGET', keys[i], 'owner', 'fence', 'at')
    if h['err'] or h[1] ~= boot or h[2] ~= a[at] then
      told[i - 1] = '0'
    else
      if (h[3] or '') <= a[at + 1] then redis.call('HSET', keys[i], 'at', a[at + 1], 'image', a[at + 2]) end
      if gives then
        freed = freed or now_ms()
        redis.call('HSET', keys[i], 'owner', '', 'freed', freed)
      end
      told[i - 1] = '1'
    end
  end
  return table.concat(told)
end

-- keys: records. a: boot id. Gives away what the caller owns by mistake: a claim whose answer it never had.
local function free(keys, a)
  for i = 1, #keys do
    if redis.pcall('HGET', keys[i], 'owner') == a[1] then
      redis.call('HSET', keys[i], 'owner', '', 'freed', now_ms())
    end
  end
  return #keys
end

-- keys: records. a: boot id, then a fence for each.
local function delete(keys, a)
  local count = 0
  for i = 1, #keys do
    local h = redis.pcall('HMGET', keys[i], 'owner', 'fence')
    if not h['err'] and h[1] == a[1] and h[2] == a[i + 1] then count = count + redis.call('DEL', keys[i]) end
  end
  return count
end

-- keys: records. a: boot id, milliseconds that a record without an owner is kept.
-- A letter for each: d deleted; f its owner is gone, so its time begins; m the caller's; - left alone.
local function sweep(keys, a)
  local now, told, alive = now_ms(), {}, {}
  for i = 1, #keys do
    told[i] = '-'
    local h = redis.pcall('HMGET', keys[i], 'owner', 'fence', 'freed')
    if not h['err'] and h[1] and h[2] then
      local owner = h[1]
      if owner == a[1] then
        told[i] = 'm'
      elseif owner == '' then
        if tonumber(now) - (tonumber(h[3]) or 0) > tonumber(a[2]) then
          redis.call('DEL', keys[i])
          told[i] = 'd'
        end
      else
        if alive[owner] == nil then alive[owner] = redis.call('EXISTS', LEASE .. owner) end
        if alive[owner] == 0 then
          redis.call('HSET', keys[i], 'owner', '', 'freed', now)
          told[i] = 'f'
        end
      end
    end
  end
  return table.concat(told)
end

-- allow-oom: these free memory, or take next to none; without a lease a full store would end all sessions.
local function small(name, callback)
  redis.register_function{function_name = name, callback = callback, flags = {'allow-oom'}}
end
small('streamcell_1_join', join)
small('streamcell_1_renew', renew)
small('streamcell_1_leave', leave)
redis.register_function('streamcell_1_claim', claim)
redis.register_function('streamcell_1_put', put)
small('streamcell_1_free', free)
small('streamcell_1_delete', delete)
small('streamcell_1_sweep', sweep)
