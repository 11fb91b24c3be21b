"""The scripts that the engine runs in Redis: each is one step that happens as a whole or not at all.

A topic is numbered by an epoch, made with its first listener or message, and by the replication history in which its
last message was written: two servers that were promoted apart from each other go on with different histories. Where a
message is written under another history than the one before it, the script notes at which offset the older one ended
(a *fork*). Whoever knows a position of an older history is behind it, if no further, and has lost nothing; beyond it
it has seen what is no longer there. The script asks the server itself for the id of its history, in the same step:
that of a connection changes under it (docs/scaling.rst, "Positions that survive").
"""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple

__all__ = ["Script", "Scripts"]

#: Forks that are remembered of a topic, the newest.
MAX_FORKS = 64

_HISTORY_BY_INFO = """
local function history(key)
  return string.sub(string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)'), 1, 8)
end
"""
#: Where INFO is refused: each node writes a new one first on each new connection.
_HISTORY_BY_KEY = """
local function history(key)
  return redis.call('GET', key) or '0'
end
"""

_COMMON = """
-- The position of a topic, which begins its numbering where it has none: epoch, history, offset, forks.
local function stand(meta, stream, new_epoch, ttl, history_key)
  local m = redis.call('HMGET', meta, 'e', 'r', 's', 'f')
  if m[1] then return m[1], m[2], tonumber(m[3]), m[4] or '' end
  local r = history(history_key)
  -- First what takes room: a server that has none refuses that only as long as nothing is written.
  redis.call('HSET', meta, 'e', new_epoch, 'r', r, 's', '0')
  redis.call('DEL', stream)
  redis.call('PEXPIRE', meta, ttl)
  return new_epoch, r, 0, ''
end
-- Why nothing can be told that follows a known position; an empty text where it can.
local function lost(e, r, top, forks, known_e, known_r, known)
  if known_e ~= e then return 'epoch' end
  if known_r == r then return known > top and 'history_lost' or '' end
  local ended = string.match(' ' .. forks, ' ' .. known_r .. ':(%d+) ')
  if not ended or known > tonumber(ended) then return 'history_lost' end
  return ''
end
"""

# KEYS: stream, meta, history, and the idempotency key if there is one.
# ARGV: channel, messages kept, keep ms, numbering's ms, key's ms, payload, new epoch, digest
_PUBLISH = """
local e, r, top, forks
if KEYS[4] then
  local known = redis.call('GET', KEYS[4])
  if known then
    if string.sub(known, 1, #ARGV[8]) ~= ARGV[8] then return redis.error_reply('CONFLICT') end
    local position = string.sub(known, #ARGV[8] + 1)
    if position == '' then return '' end
    if string.match(position, '^%d+ (%w+)') ~= redis.call('HGET', KEYS[2], 'e') then return '' end
    return position
  end
end
e, r, top, forks = stand(KEYS[2], KEYS[1], ARGV[7], ARGV[4], KEYS[3])
local now = history(KEYS[3])
local next = top + 1
redis.call('XADD', KEYS[1], 'MAXLEN', '=', ARGV[2], next .. '-0', 'd', ARGV[6])
if r ~= now then
  local first = tonumber(string.match(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1], '%d+'))
  local kept = {}
  for one, ended in string.gmatch(forks .. r .. ':' .. top .. ' ', '(%w+):(%d+) ') do
    -- Of a history that comes again only its last end counts, and none by which nothing can be told any more.
    if one ~= now and tonumber(ended) + 1 >= first then kept[#kept + 1] = one .. ':' .. ended .. ' ' end
  end
  while #kept > FORKS do table.remove(kept, 1) end
  redis.call('HSET', KEYS[2], 's', next, 'r', now, 'f', table.concat(kept))
  r = now
else
  redis.call('HSET', KEYS[2], 's', next)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local position = next .. ' ' .. e .. '.' .. r
redis.call('PUBLISH', ARGV[1], position .. ' ' .. ARGV[6])
if KEYS[4] then redis.call('SET', KEYS[4], ARGV[8] .. position, 'PX', ARGV[5]) end
return position
"""

# KEYS: stream, meta, history, and the idempotency key if there is one. ARGV: channel, key's ms, payload, digest
_RELAY = """
if KEYS[4] then
  local known = redis.call('GET', KEYS[4])
  if known then
    if string.sub(known, 1, #ARGV[4]) ~= ARGV[4] then return redis.error_reply('CONFLICT') end
    return ''
  end
end
-- What is not kept is missing in what was: its numbering is over.
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('DEL', KEYS[1], KEYS[2]) end
redis.call('PUBLISH', ARGV[1], '0 - ' .. ARGV[3])
if KEYS[4] then redis.call('SET', KEYS[4], ARGV[4], 'PX', ARGV[2]) end
return ''
"""

# KEYS: stream, meta, history. ARGV: new epoch, numbering's ms
_LISTEN = """
local e, r, top = stand(KEYS[2], KEYS[1], ARGV[1], ARGV[2], KEYS[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return top .. ' ' .. e .. '.' .. r
"""

# KEYS: one or more metas, of one partition. ARGV: numbering's ms
_STAND = """
local found = {}
for i, key in ipairs(KEYS) do
  local m = redis.call('HMGET', key, 's', 'e', 'r')
  if m[2] then
    found[i] = m[1] .. ' ' .. m[2] .. '.' .. m[3]
    if redis.call('PTTL', key) < tonumber(ARGV[1]) then redis.call('PEXPIRE', key, ARGV[1]) end
  else
    found[i] = ''
  end
end
return found
"""

# KEYS: stream, meta, history.
# ARGV: new epoch, numbering's ms, since epoch ('' where there is none), its history, its offset, before epoch ('' for
# whichever), before offset ('' where there is none), limit, most bytes, whether newest first, whether all or nothing
_READ = r"""
local e, r, top, forks = stand(KEYS[2], KEYS[1], ARGV[1], ARGV[2], KEYS[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local position = top .. ' ' .. e .. '.' .. r
local limit, most = tonumber(ARGV[8]), tonumber(ARGV[9])
local newest, all = ARGV[10] == '1', ARGV[11] == '1'
local first, last = 1, top
if ARGV[5] ~= '' then
  local known = tonumber(ARGV[5])
  if ARGV[3] ~= '' then
    local why = lost(e, r, top, forks, ARGV[3], ARGV[4], known)
    if why ~= '' then return {position, why} end
  elseif known > top then
    return {position, 'history_lost'}
  end
  first = known + 1
end
if ARGV[7] ~= '' then
  if ARGV[6] ~= '' and ARGV[6] ~= e then return {position, 'epoch'} end
  last = math.min(last, tonumber(ARGV[7]) - 1)
end
local oldest = top + 1
if top > 0 then
  local found = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  if found then oldest = tonumber(string.match(found[1], '%d+')) end
end
if first < oldest then
  if ARGV[5] ~= '' then return {position, 'too_old'} end
  first = oldest
end
local more = last - first + 1 > limit
if all and more then return {position, 'too_many'} end
if more then
  if newest then first = last - limit + 1 else last = first + limit - 1 end
end
local out, size = {position, '', 0}, 0
while first <= last do
  local found
  if newest then
    found = redis.call('XREVRANGE', KEYS[1], last .. '-0', first .. '-0', 'COUNT', 100)
  else
    found = redis.call('XRANGE', KEYS[1], first .. '-0', last .. '-0', 'COUNT', 100)
  end
  if #found == 0 then break end
  for i = 1, #found do
    local offset, payload = tonumber(string.match(found[i][1], '%d+')), found[i][2][2]
    size = size + #payload - string.find(payload, '\n', 1, true)
    if size > most and (all or #out > 3) then
      if all then return {position, 'too_many'} end
      out[3] = 1
      return out
    end
    out[#out + 1] = offset
    out[#out + 1] = payload
    if newest then last = offset - 1 else first = offset + 1 end
  end
end
if more then out[3] = 1 end
return out
"""

# KEYS: stream. ARGV: the first offset that stays
_TRIM = """
return redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1] .. '-0')
"""

# KEYS: stream, meta
_DROP = """
return redis.call('DEL', KEYS[1], KEYS[2])
"""

# KEYS: members, users, the node's topics, the node's members of the topic, the node's mark of death
# ARGV: channel, node, topic, then by four: connection, user as JSON, what (in, keep, out), state as JSON
# A version is later than all before it, also on a server that has not seen those: it goes by microseconds.
_MOVE = r"""
if redis.call('EXISTS', KEYS[5]) == 1 then return redis.error_reply('DEADNODE') end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('HGET', KEYS[2], '') or '0')
local came, went, told = false, false, {}
for i = 4, #ARGV, 4 do
  local connection, user, what, state = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local known = redis.call('HGET', KEYS[1], connection)
  local known_user, known_state
  if known then known_user, known_state = string.match(known, '^[^\n]*\n([^\n]*)\n(.*)$') end
  local before, after, is_new
  if what == 'out' then
    if known then
      user = known_user
      before = tonumber(redis.call('HGET', KEYS[2], user) or '1')
      after = before - 1
      redis.call('HDEL', KEYS[1], connection)
      if after > 0 then redis.call('HSET', KEYS[2], user, after) else redis.call('HDEL', KEYS[2], user) end
      redis.call('SREM', KEYS[4], connection)
      went, is_new, state = true, true, 'null'
    end
  else
    if what == 'keep' and known then state = known_state end
    if not known or known_state ~= state then
      before = tonumber(redis.call('HGET', KEYS[2], user) or '0')
      after = known and before or before + 1
      redis.call('HSET', KEYS[1], connection, ARGV[2] .. '\n' .. user .. '\n' .. state)
      if not known then redis.call('HSET', KEYS[2], user, after) end
      is_new = true
    elseif string.match(known, '^[^\n]*') ~= ARGV[2] then
      redis.call('HSET', KEYS[1], connection, ARGV[2] .. '\n' .. user .. '\n' .. state)
    end
    redis.call('SADD', KEYS[4], connection)
    came = true
  end
  if is_new then
    local version = math.max(last + 1, now)
    told[#told + 1] = string.format('[%.0f,%.0f,%d,%d,', last, version, before, after) .. connection .. ',' .. user
      .. ',' .. state
    last = version
  end
end
if came then redis.call('SADD', KEYS[3], ARGV[3]) end
if went and redis.call('EXISTS', KEYS[4]) == 0 then redis.call('SREM', KEYS[3], ARGV[3]) end
if #told == 0 then return '' end
local connections = redis.call('HLEN', KEYS[1])
if connections == 0 then
  redis.call('DEL', KEYS[2])
else
  redis.call('HSET', KEYS[2], '', string.format('%.0f', last))
end
local counts = ',' .. math.max(0, redis.call('HLEN', KEYS[2]) - 1) .. ',' .. connections .. ']'
local text = '[' .. table.concat(told, counts .. ',') .. counts .. ']'
redis.call('PUBLISH', ARGV[1], 'p' .. text)
return text
"""

# KEYS: as of move. ARGV: node, name, member, how many there may be
# A place is a member of a topic that nobody listens to; whether there is one.
_CLAIM = r"""
if redis.call('EXISTS', KEYS[5]) == 1 then return redis.error_reply('DEADNODE') end
if redis.call('HEXISTS', KEYS[1], ARGV[3]) == 1 then return 1 end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[1] .. '\n""\n{}')
redis.call('HINCRBY', KEYS[2], '""', 1)
redis.call('SADD', KEYS[4], ARGV[3])
redis.call('SADD', KEYS[3], ARGV[2])
return 1
"""

# KEYS: members, users. ARGV: names at most
_MEMBERS = """
local connections = redis.call('HLEN', KEYS[1])
local out = {redis.call('HGET', KEYS[2], '') or '0', math.max(0, redis.call('HLEN', KEYS[2]) - 1), connections}
if connections > 0 and connections <= tonumber(ARGV[1]) then out[4] = redis.call('HGETALL', KEYS[1]) end
return out
"""

# KEYS: the topics of a node that is dead, its mark. ARGV: seconds that the mark is kept
# Marks it, so that it comes in nowhere any more; some of the topics that it has members in.
_DOOMED = """
redis.call('SET', KEYS[2], '1', 'EX', ARGV[1])
return redis.call('SRANDMEMBER', KEYS[1], 100)
"""

# KEYS: members, users, the dead node's topics, its members of the topic. ARGV: channel, node, topic
# Takes out some of its members: text of the changes, and whether there are more.
_REAP = r"""
local gone = redis.call('SPOP', KEYS[4], 500)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('HGET', KEYS[2], '') or '0')
local told = {}
for _, connection in ipairs(gone) do
  local known = redis.call('HGET', KEYS[1], connection)
  if known then
    local node, user = string.match(known, '^([^\n]*)\n([^\n]*)\n')
    if node == ARGV[2] then
      local before = tonumber(redis.call('HGET', KEYS[2], user) or '1')
      redis.call('HDEL', KEYS[1], connection)
      if before > 1 then redis.call('HSET', KEYS[2], user, before - 1) else redis.call('HDEL', KEYS[2], user) end
      local version = math.max(last + 1, now)
      told[#told + 1] = string.format('[%.0f,%.0f,%d,%d,', last, version, before, before - 1) .. connection .. ','
        .. user .. ',null'
      last = version
    end
  end
end
local more = redis.call('EXISTS', KEYS[4])
if more == 0 then redis.call('SREM', KEYS[3], ARGV[3]) end
if #told == 0 then return {'', more} end
local connections = redis.call('HLEN', KEYS[1])
if connections == 0 then
  redis.call('DEL', KEYS[2])
else
  redis.call('HSET', KEYS[2], '', string.format('%.0f', last))
end
local counts = ',' .. math.max(0, redis.call('HLEN', KEYS[2]) - 1) .. ',' .. connections .. ']'
local text = '[' .. table.concat(told, counts .. ',') .. counts .. ']'
redis.call('PUBLISH', ARGV[1], 'p' .. text)
return {text, more}
"""

# KEYS: nodes, the node's mark of death. ARGV: node, its entry, nodes that are no more...
# Counts a beat of the node; all nodes with their entries.
_BEAT = """
if redis.call('EXISTS', KEYS[2]) == 1 then return redis.error_reply('DEADNODE') end
for i = 3, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])
"""


class Script(NamedTuple):
    """A script.

    :ivar sha: its name in the server.
    """

    text: str
    sha: str


class Scripts:
    """The scripts, as the server allows them.

    :param by_info: whether they may ask the server for the id of its replication history.
    :param is_cluster: whether channels belong to a part of the servers, as keys do.
    """

    def __init__(self, by_info: bool = True, is_cluster: bool = False):
        begin = (_HISTORY_BY_INFO if by_info else _HISTORY_BY_KEY) + _COMMON

        def _script(text: str) -> Script:
            text = text.replace("FORKS", str(MAX_FORKS))
            if is_cluster:
                text = text.replace("'PUBLISH'", "'SPUBLISH'")
            return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

        self.publish = _script(begin + _PUBLISH)
        self.relay = _script(_RELAY)
        self.listen = _script(begin + _LISTEN)
        self.stand = _script(_STAND)
        self.read = _script(begin + _READ)
        self.trim = _script(_TRIM)
        self.drop = _script(_DROP)
        self.move = _script(_MOVE)
        self.claim = _script(_CLAIM)
        self.members = _script(_MEMBERS)
        self.doomed = _script(_DOOMED)
        self.reap = _script(_REAP)
        self.beat = _script(_BEAT)

    @property
    def all(self) -> list[Script]:
        """Each of them."""
        return [each for each in vars(self).values() if isinstance(each, Script)]
