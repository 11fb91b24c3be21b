"""A pooler before PostgreSQL lets a connection wait for one of its sessions, and may arrange each of them.

None of it has a parameter or a message of its own. A connection that waits gets no answer; what a new session has is
told from what strangers left by looking at one that nobody had before.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

__all__ = ["find_arranged", "first_answer"]

#: Seconds between looks at a connection whose answer is late.
_LOOK = 0.02
#: How many sessions are held at a time, and seconds to wait for another one, to find one that is new.
_MAX_HELD = 20
_MAX_WAIT = 0.5
_VALUES = """
SELECT p.n, coalesce(pg_catalog.current_setting(p.n, true), '') FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS p (n)
"""
_MICROSECONDS = "(EXTRACT(epoch FROM {}) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8"
#: What a session has, and whether it was begun later than then, which its own role alone may see.
_THERE = """
BEGIN; SELECT {}; SET LOCAL SESSION AUTHORIZATION DEFAULT; SET LOCAL ROLE NONE;
SELECT {} OPERATOR(pg_catalog.>) {} FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
"""


def first_answer(
    raw: psycopg.Connection[Any], statement: str, patient: float, until: float, offered: Callable[[], bool]
) -> list[str | None] | None:
    """Run a connection's first statement, for which a pooler may wait until one of its sessions is free.

    :param patient: when ``offered`` is asked from, on the monotonic clock.
    :param until: when to wait no longer.
    :param offered: whether there is something else to go on with.
    :return: the values of its rows, of which each query in it brings one, as texts; ``None`` when there is something
        else, or no answer in time. The connection can only be closed then.
    :raises psycopg.Error: as the server has it.
    """
    line, poll = raw.pgconn, select.poll()
    line.send_query(statement.encode())
    while (unsent := line.flush()) or line.is_busy():
        poll.register(raw.fileno(), select.POLLIN | (select.POLLOUT if unsent else 0))
        if poll.poll(_LOOK * 1000):
            line.consume_input()
            continue
        now = time.monotonic()
        if now > until or (now > patient and offered()):
            return None
    row: list[str | None] = []
    while (result := line.get_result()) is not None:
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
        if result.ntuples:
            values = (result.get_value(0, number) for number in range(result.nfields))
            row += [None if value is None else value.decode() for value in values]
    return row


def find_arranged(
    raw: psycopg.Connection[Any], names: list[str], another: Callable[[], psycopg.Connection[Any]]
) -> tuple[dict[str, str], bool]:
    """Find the settings that the pooler itself makes in each new session, as pgbouncer does with ``connect_query``.

    What strangers left differs in the same way from what the database gives. So other sessions are looked at, until one
    has none of it or is new.

    :param raw: in autocommit; it is left as it was.
    :param names: of the settings to look at.
    :param another: makes a connection to the same pooler.
    :return: the settings with what they are, and whether that is sure: otherwise a stranger may have left them, for
        there was no new session to look at.
    :raises psycopg.Error: when the database does not answer.
    """
    others: list[psycopg.Connection[Any]] = []
    raw.execute("BEGIN")
    try:
        # What is held is nobody else's, so that the next connection gets another one.
        there: dict[str, str] = dict(raw.execute(_VALUES, (names,)).fetchall())
        raw.execute("RESET ALL")
        raw.execute("SET LOCAL SESSION AUTHORIZATION DEFAULT")
        given, now = dict(raw.execute(_VALUES, (names,)).fetchall()), None
        found = {name: value for name, value in there.items() if value != given[name]}
        if found:
            now = raw.execute("SELECT " + _MICROSECONDS.format("pg_catalog.clock_timestamp()")).fetchone()
        while found and now and len(others) < _MAX_HELD:
            shown = (f"coalesce(pg_catalog.current_setting({_literal(name)}, true), '')" for name in found)
            statement = _THERE.format(", ".join(shown), _MICROSECONDS.format("a.backend_start"), now[0])
            other = answer = None
            try:
                other = another()
                until = time.monotonic() + _MAX_WAIT
                answer = first_answer(other, statement, until, until, lambda: True)
            except psycopg.OperationalError:
                pass  # there are no more
            if other is None or answer is None:
                if other is not None:
                    other.close()
                break
            found = {name: value for (name, value), its in zip(found.items(), answer[:-1], strict=True) if its == value}
            if answer[-1] == "t":
                # In the middle of a transaction, with which it takes its session along: there is room for a new one
                # then the next time too.
                other.close()
                return found, True
            others.append(other)
        return found, False
    finally:
        for each in (raw, *others):
            with suppress(psycopg.Error):
                each.execute("ROLLBACK")
        for each in others:
            each.close()


def _literal(value: str) -> str:
    return sql.Literal(value).as_string(None)
