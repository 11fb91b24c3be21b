"""A pooler before PostgreSQL lets a connection wait for one of its sessions."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import ExecStatus

__all__ = ["first_answer"]

#: Seconds between looks at a connection whose answer is late.
_LOOK = 0.02


def first_answer(
    raw: psycopg.Connection[Any], statement: str, patient: float, until: float, offered: Callable[[], bool]
) -> list[str | None] | None:
    """Run a connection's first statement, for which a pooler may wait until one of its sessions is free.

    :param patient: when ``offered`` is asked from, on the monotonic clock.
    :param until: when to wait no longer.
    :param offered: whether there is something else to go on with.
    :return: the last row, as texts; ``None`` when there is something else, or no answer in time. The connection can
        only be closed then.
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
            row = [None if value is None else value.decode() for value in values]
    return row
