"""The session that statements run in on PostgreSQL: every setting as the start found it, whatever others leave behind.

A pooler shares the server's sessions with strangers, and triggers and functions run in ours. Both may leave a search
path, a role, a setting or a temporary table there, which would change where and under which rights a statement reads
and writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import sql

__all__ = ["MAX_OWN", "Session", "asked_settings", "change", "learn_session", "renew_session", "set_session"]

#: The settings that every statement runs under, whatever the database or the role has set: without them no value can be
#: sent. Anybody may set each of them, for a session or for a transaction.
_PINNED = {"array_nulls": "on", "client_encoding": "UTF8"}
#: The settings by which PostgreSQL writes values as text, as zComm shows them. The code of the database's users runs
#: under those that the database has.
_FORMS = {
    "TimeZone": "UTC",
    # The order of day and month is for reading; what is written so is read in any.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    # Since PostgreSQL 12 anything above 0 is the shortest text that reads as the same number.
    "extra_float_digits": "3",
}
#: Zones whose clock is that of UTC, and is written so.
_UTC = frozenset(place + name for place in ("", "Etc/") for name in ("UTC", "UCT", "GMT", "Zulu", "Universal"))
#: The settings of PL/pgSQL, which has them in a session from its first function on.
_LANGUAGE = {
    "plpgsql.check_asserts": "on",
    "plpgsql.extra_errors": "none",
    "plpgsql.extra_warnings": "none",
    "plpgsql.print_strict_params": "off",
    "plpgsql.variable_conflict": "error",
}
#: How many settings of the users' own are kept at most: each transaction asks for each of them.
MAX_OWN = 1000
#: Every setting that a session may change: all of them are kept, so that none has to be known by its name. Those of
#: transactions come with BEGIN, the buffers cannot be changed once they are in use, and a log changes nothing.
_SETTINGS = """
SELECT name, coalesce(reset_val, ''), setting IS DISTINCT FROM reset_val,
    context = 'superuser' AND current_setting('is_superuser') <> 'on'
FROM pg_settings
WHERE context IN ('user', 'superuser') AND category NOT LIKE 'Reporting and Logging%' AND name NOT IN (
    'application_name', 'search_path', 'temp_buffers', 'transaction_isolation', 'transaction_read_only',
    'transaction_deferrable'
)
"""
#: The role that was let in, where it is; what the database and the role set.
_LOGIN = """
SELECT a.usename::text, d.oid, a.usesysid, pg_is_in_recovery()
FROM pg_stat_activity a JOIN pg_database d ON d.datname = current_database() WHERE a.pid = pg_backend_pid()
"""
_GIVEN = """
SELECT split_part(one, '=', 1), substr(one, strpos(one, '=') + 1) FROM pg_db_role_setting, unnest(setconfig) AS one
WHERE setdatabase IN (0, {}) AND setrole IN (0, {}) ORDER BY setrole <> 0, setdatabase <> 0
"""
#: Where the database's users wrote what PostgreSQL runs: a condition on their rows of a catalogue, and the columns that
#: have expressions there, as the server keeps them. (To have their text would wait for whoever alters the table.)
_WRITTEN = {
    "pg_proc": ("oid >= 16384", ["proargdefaults", "prosqlbody"]),
    "pg_policy": ("true", ["polqual", "polwithcheck"]),
    "pg_attrdef": ("true", ["adbin"]),
    "pg_constraint": ("contype = 'c'", ["conbin"]),
    "pg_type": ("typtype = 'd'", ["typdefaultbin"]),
    "pg_trigger": ("NOT tgisinternal", ["tgqual"]),
    "pg_rewrite": ("oid >= 16384", ["ev_qual", "ev_action"]),
    "pg_db_role_setting": ("true", []),
}
#: Another one for other rows: what is added later was made by a later transaction.
_STATE = "SELECT count(*), sum(xmin::text::bigint) FROM {} WHERE {}"
_TREE = "SELECT {}::text FROM {} WHERE {}"
#: A name with a dot.
_DOTTED = re.compile(r"[^\W\d][\w$]*(?:\.[^\W\d][\w$]*)+")
#: What may be one in the body of a function: between quotation marks of one kind or another.
_QUOTED = r"""(?:['"$]|SHOW\s+)([^\s'"$.,;()]+(?:\.[^\s'".,;()]+)+)"""
_CONSTANT = r":constvalue [0-9]+ \[ ((?:-?[0-9]+ )+46(?: -?[0-9]+)+)"
#: Texts in which settings of the users' own are named, of which PostgreSQL has no list: the bodies of functions, the
#: arguments of triggers, and the bytes of constants, as numbers.
_TEXTS = """
SELECT found[1], false FROM pg_proc, regexp_matches(prosrc, {quoted}, 'gi') AS found WHERE oid >= 16384
UNION SELECT encode(tgargs, 'escape'), false FROM pg_trigger WHERE NOT tgisinternal AND tgargs <> ''
UNION SELECT found[1], true FROM ({trees}) AS trees (one),
    regexp_matches(one, {constant}, 'g') AS found
"""
_VALUES = "SELECT n, coalesce(current_setting(n, true), '') FROM {} AS p (n)"
#: The operators too are those of PostgreSQL: the search path is still whatever it is.
_PINS = (
    "SELECT pg_catalog.set_config(p.n, p.v, true) FROM ROWS FROM ({}, {}) AS p (n, v) "
    "WHERE pg_catalog.current_setting(p.n, true) OPERATOR(pg_catalog.<>) p.v"
)
#: Of the users' own settings those that are otherwise. A library that came into the session may have made one its own.
_OWN_PINS = (
    "SELECT pg_catalog.set_config(p.n, p.v, true) FROM ROWS FROM ({}, {}) AS p (n, v) "
    "WHERE CASE WHEN coalesce(pg_catalog.current_setting(p.n, true), '') OPERATOR(pg_catalog.<>) p.v THEN NOT EXISTS "
    "(SELECT FROM pg_catalog.pg_settings AS s WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) p.n) END"
)
#: Where types are whose operators stand beside them.
_TYPES = """
SELECT DISTINCT quote_ident(n.nspname) FROM pg_operator o JOIN pg_type t ON t.oid = o.oprleft
JOIN pg_namespace n ON n.oid = o.oprnamespace AND n.oid = t.typnamespace
WHERE n.nspname <> 'pg_catalog' AND has_schema_privilege(n.oid, 'USAGE') ORDER BY 1
"""
#: Of those that the role may see.
_SHOWN = "SELECT name, current_setting(name) FROM pg_settings JOIN {} AS p (n) ON name = n"
_PATH = """
SELECT coalesce(pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' ORDER BY number), 'pg_catalog'),
    coalesce(pg_catalog.min(name COLLATE "C") FILTER (WHERE number OPERATOR(pg_catalog.=) 1), '')
FROM (
    SELECT name::pg_catalog.text, pg_catalog.row_number() OVER (ORDER BY place) AS number
    FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS path (name, place)
    WHERE name::pg_catalog.text OPERATOR(pg_catalog.!~) '^pg_(toast_)?temp_'
) AS schemas
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session as the start found it.

    :ivar namespace: the schema in which tables are made; empty where the search path names none.
    :ivar path: the search path: the schemas that were there, and that of temporary tables after them.
    :ivar wide: for statements whose tables are named with their schemas: with the schemas of further types at the end,
        so that these compare by operators of their own.
    :ivar begin: begins a transaction as the database's own settings have it.
    :ivar values: the settings by name, in the order in which they have to be set.
    :ivar forms: of the settings by which values are written as text, those that are not as zComm shows values: what it
        needs, and what the session has.
    :ivar kept: the names of those that a superuser alone may set, where we are none.
    :ivar own: the settings that the database's users made up, such as ``app.tenant``: those that the database, the role
        or the URL sets, and those that anything in the database names. Where a pooler stands in between.
    :ivar state: of the catalogues in which they are named.
    """

    namespace: str
    path: str
    wide: str
    begin: str
    values: dict[str, str]
    forms: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()
    own: dict[str, str] = field(default_factory=dict)
    state: str = ""

    def pins(self, limits: dict[str, str], within: bool = False) -> str:
        """A statement that sets for the transaction what is otherwise.

        :param limits: further settings, of times.
        :param within: whether the transaction is under way, in which code with more rights than ours may have set more
            than we could. At the beginning of one that makes it fail.
        """
        left = self.kept if within else ()
        values = {name: value for name, value in {**self.values, **limits}.items() if name not in left}
        pins = _PINS.format(_array(values), _array(values.values()))
        return f"{pins}; {_OWN_PINS.format(_array(self.own), _array(self.own.values()))}" if self.own else pins


def set_session(session: Session, path: str, limits: dict[str, str]) -> str:
    """An expression that sets for a session of our own what has to be as the start found it, or what zComm needs.

    :param path: one of those of ``session``.
    :param limits: further settings, of times.
    """
    values = {**_PINNED, **{name: session.values[name] for name in _FORMS}, "search_path": path, **limits}
    return " || ".join(f"pg_catalog.set_config('{name}', {_literal(value)}, false)" for name, value in values.items())


def learn_session(raw: psycopg.Connection[Any], pooled: bool) -> Session:
    """Find out which session the database means us to have.

    :param raw: connected, in autocommit; it is left as it was.
    :param pooled: whether it is shared with strangers, so that what is set in it may be theirs.
    :raises psycopg.Error: when the database does not answer, and where strangers or the pooler set what counts.
    """
    with raw.transaction(force_rollback=True):
        now = raw.execute(
            "SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('role'), session_user"
        ).fetchone() or ("", "", "")
        raw.execute("SET LOCAL search_path = pg_catalog")
        login, database, oid, recovers = raw.execute(_LOGIN).fetchone() or (now[2], 0, 0, False)
        configured = dict(raw.execute(_GIVEN.format(database, oid)).fetchall())
        asked = asked_settings(raw.info.options)
        meant = {**configured, **asked}
        found = raw.execute(_SETTINGS).fetchall()
        reset = raw.execute("SELECT reset_val FROM pg_settings WHERE name = 'search_path'").fetchone() or ("",)
        who = {"search_path": meant.get("search_path", reset[0]) if "search_path" in asked else reset[0]}
        who["role"] = meant.get("role", "none")
        for name, there in (("search_path", now[0]), ("role", now[1])):
            if pooled and there != who[name] and name not in asked:
                raise psycopg.NotSupportedError(
                    f"FATAL: the pooler's session has {name} set to {there}, and the database gives {who[name]}; say "
                    f"which it is in the query of the URL (?options=-c{name}%3D…, with ignore_startup_parameters = "
                    "options in pgbouncer)"
                )
        names = [name for name, *_ in found]
        folded = {name.lower(): name for name in names}
        values = {name: value for name, value, changed, _ in found if changed}
        first = {"session_authorization": login, "role": who["role"], "search_path": who["search_path"]}
        # In the words of the server, so that what is as it should be is not set again.
        arranged = Session(namespace="", path="", wide="", begin="", values={**first, **values})
        raw.execute(arranged.pins({}))
        # By themselves, for they may say a part of what is there: an order of day and month alone.
        values = {folded[name.lower()]: value for name, value in asked.items() if name.lower() in folded}
        raw.execute(replace(arranged, values={**values, **_PINNED}).pins({}))
        path, namespace = raw.execute(_PATH).fetchone() or ("pg_catalog", "")
        first["search_path"] = path + ", pg_temp"
        raw.execute("SET LOCAL search_path = pg_catalog")
        further = [name for (name,) in raw.execute(_TYPES).fetchall()]
        shown = raw.execute(_SHOWN.format(_array(names))).fetchall()
    values = {name: value for name, value in shown if value is not None}
    begin = (
        f"BEGIN ISOLATION LEVEL {values.get('default_transaction_isolation', 'read committed')}, "
        f"{'' if values.get('default_transaction_deferrable') == 'on' else 'NOT '}DEFERRABLE"
    )
    if not recovers:
        begin += f", READ {'ONLY' if values.get('default_transaction_read_only') == 'on' else 'WRITE'}"
    languages = {name: meant.get(name, value) for name, value in _LANGUAGE.items()}
    session = Session(
        namespace=namespace,
        path=first["search_path"],
        wide=", ".join([path, *further, "pg_temp"]),
        begin=begin,
        values={**first, **languages, **values},
        forms=_forms(values, raw.info.server_version),
        kept=frozenset(name for name, _, _, above in found if above),
    )
    return renew_session(raw, session, {}) if pooled else session


def renew_session(raw: psycopg.Connection[Any], session: Session, limits: dict[str, str]) -> Session:
    """``session`` with the users' own settings as they are by now: a migration may have brought one.

    :param raw: in autocommit and shared with strangers; it is left as it was.
    :param limits: settings of times.
    :return: ``session`` itself where nothing has changed.
    :raises psycopg.Error: when the database does not answer.
    """
    limits = {**limits, "search_path": "pg_catalog"}
    with raw.transaction(force_rollback=True):
        raw.execute(session.pins(limits))
        each = (_STATE.format(catalog, condition) for catalog, (condition, _) in _WRITTEN.items())
        state = str(sorted(map(str, raw.execute(" UNION ALL ".join(each)).fetchall())))
        if state == session.state:
            return session
        _, database, oid, _ = raw.execute(_LOGIN).fetchone() or ("", 0, 0, False)
        meant = {**dict(raw.execute(_GIVEN.format(database, oid)).fetchall()), **asked_settings(raw.info.options)}
        meant = {name.lower(): value for name, value in meant.items() if "." in name}
        trees = " UNION ALL ".join(
            _TREE.format(column, catalog, condition)
            for catalog, (condition, columns) in _WRITTEN.items()
            for column in columns
            if column != "prosqlbody" or raw.info.server_version >= 140000
        )
        texts = raw.execute(
            _TEXTS.format(quoted=_literal(_QUOTED), constant=_literal(_CONSTANT), trees=trees)
        ).fetchall()
        named = {name.lower() for text, numbers in texts for name in _dotted(text, numbers)}
        names = [*meant, *sorted(named - meant.keys())][:MAX_OWN]
        # With the values of a new session, whatever is set in this one.
        raw.execute("RESET ALL")
        raw.execute(replace(session, own={}).pins(limits))
        values: dict[str, str] = dict(raw.execute(_VALUES.format(_array(names))).fetchall())
    own = {name: meant.get(name, value) for name, value in values.items() if name not in session.values}
    return replace(session, own=own, state=state)


def _dotted(text: str, numbers: bool) -> list[str]:
    """The names with a dot in ``text``.

    :param numbers: whether it has the bytes of a constant, of a text after four that say how long it is.
    """
    parts = [text]
    if numbers:
        value = bytes(int(number) % 256 for number in text.split())
        parts = [part.decode(errors="replace") for part in (value, value[4:])]
    found = [name for part in parts for name in _DOTTED.findall(part)]
    # A dollar is of the name, or of a quotation mark after it: $q$app.tenant$q$.
    return found + [name[: name.index("$")] for name in found if "$" in name]


def _forms(values: dict[str, str], version: int) -> dict[str, tuple[str, str]]:
    """Of the settings ``values`` those by which the server, of that version, writes values as zComm does not."""
    alike = {
        "TimeZone": values["TimeZone"] in _UTC,
        "DateStyle": values["DateStyle"].startswith("ISO"),
        "extra_float_digits": int(values["extra_float_digits"]) > (0 if version >= 120000 else 2),
    }
    return {name: (ours, values[name]) for name, ours in _FORMS.items() if not alike.get(name, values[name] == ours)}


def asked_settings(options: str) -> dict[str, str]:
    """The settings in the startup parameter ``options``, by which a URL asks for them.

    Blanks separate its words; a backslash takes the meaning from the character after it (PostgreSQL documentation,
    "Parameter Interaction via the Shell").
    """
    words = [""]
    characters = iter(options)
    for character in characters:
        if character == "\\":
            words[-1] += next(characters, "")
        elif character.isspace():
            words.append("")
        else:
            words[-1] += character
    asked = {}
    each = iter([word for word in words if word])
    for word in each:
        if word == "-c":
            word = next(each, "")
        elif word[:2] in ("-c", "--"):
            word = word[2:]
        else:
            continue
        name, equals, value = word.partition("=")
        if equals:
            asked[name.replace("-", "_").lower()] = value
    return asked


def change(name: str, value: str) -> str:
    """An SQL expression that sets a setting for the transaction, and is null."""
    return f"CASE WHEN pg_catalog.set_config('{name}', {_literal(value)}, true) IS NULL THEN '' END"


def _literal(value: str) -> str:
    # With a backslash it has the form that knows no setting of its own.
    return sql.Literal(value).as_string(None)


def _array(values: Iterable[str]) -> str:
    """``values`` as rows, in SQL."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    array = _literal("{" + ",".join(f'"{value}"' for value in quoted) + "}")
    return f"pg_catalog.unnest({array}::pg_catalog.text[])"
