"""The status of services and how to reach them, as values."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from zcomm.services.status import ConnectionInfo, Health, ServiceState, ServiceStatus, uptime_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-5, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (8100, "2h 15m"),
        (8101, "2h 15m"),
        (86400, "1d"),
        (90000, "1d 1h"),
        (86460, "1d"),
        (10**7, "115d 17h"),
    ],
)
def test_uptimes(seconds: float, text: str):
    """As the guide writes them."""
    assert uptime_text(seconds) == text


def test_a_status_as_the_guide_has_it():
    """The guide's four keys, and nothing that is not running has an uptime."""
    running = ServiceStatus(
        name="postgresql", state=ServiceState.RUNNING, pid=12345, port=5432, started=1000.0, health=Health.HEALTHY
    )
    seen = running.as_dict(now=9100.0)
    assert {key: seen[key] for key in ("running", "pid", "port", "uptime")} == {
        "running": True,
        "pid": 12345,
        "port": 5432,
        "uptime": "2h 15m",
    }
    assert seen["state"] == "running" and type(seen["state"]) is str and type(seen["health"]) is str
    assert ServiceStatus(name="x").as_dict(0.0)["uptime"] is None
    assert not any(
        ServiceStatus(name="x", state=state).as_dict(0)["running"]
        for state in ServiceState
        if state is not ServiceState.RUNNING
    )
    with pytest.raises(FrozenInstanceError):
        running.pid = 1


def test_a_connection_info_shows_its_secret_only_when_asked():
    """Not when it is printed or logged; exports are safe for a shell."""
    info = ConnectionInfo(
        host="127.0.0.1",
        port=5432,
        connection_string="postgresql://u:pa$$@h/d",
        database="d",
        user="u",
        password="pa$$",
        environment={"PGPASSWORD": "pa$$ '\""},
    )
    assert "pa$$" not in repr(info) and info.as_dict()["password"] == "pa$$"
    assert info.exports() == "export PGPASSWORD='pa$$ '\"'\"'\"'\n"
