"""The whole stack: ``twistd zcomm`` with PostgreSQL behind its data, Redis beside it, and clients in front."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from support.containers import contained
from support.localservers import copy_cluster, processes_in, words_of
from support.ports import unused_port
from support.rawclient import BlockingRawClient
from support.serverprocess import READY, RunningServer, clean_environ, scripts, start_server
from support.waiting import wait_until_blocking

from zcomm.services.kinds import KINDS
from zcomm.services.manager import ServiceManager

#: What a shell may say of another PostgreSQL; with each of the first four, ours could not be reached.
SHELL = {
    "PGSERVICE": "nowhere",
    "PGDATESTYLE": "nonsense",
    "PGTZ": "nonsense",
    "PGGEQO": "nonsense",
    "PGHOST": "/nowhere",
    "PGSSLMODE": "verify-full",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREAUTH": "md5",
    "PGGSSENCMODE": "require",
    "PGSSLNEGOTIATION": "direct",
    "PGLOADBALANCEHOSTS": "nonsense",
    "PGCONNECT_TIMEOUT": "nonsense",
    "PGOPTIONS": "nonsense",
}


@pytest.fixture
def home(place: Path, template: Path) -> Path:
    """A home whose data directory, ``zcomm``, has a PostgreSQL cluster already."""
    from twisted.internet import reactor

    home = place / "user"
    home.mkdir(mode=0o711)
    service = ServiceManager(home / "zcomm", {"PATH": os.defpath}, reactor, space=(0, 0)).get("postgresql")
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    return home


@pytest.fixture
def stack(home: Path) -> Iterator[RunningServer]:
    data = home / "zcomm"
    environ = {f"{name}_PORT": str(unused_port()) for name in ("POSTGRESQL", "REDIS")}
    server = start_server(
        "--data-dir",
        str(data),
        "--service",
        "redis",
        "--service",
        "postgresql",
        "--database",
        "service:postgresql",
        home=home,
        environ={**environ, **SHELL},
    )
    try:
        yield server
    finally:
        server.stop()


def health(server: RunningServer) -> dict[str, Any]:
    request = urllib.request.Request(f"{server.http_url}/health", headers={"Authorization": f"Bearer {server.token}"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            report = json.load(answer)
    except HTTPError as error:
        with error:
            report = json.load(error)
    assert "services" in report, (report, server.log)
    return report


def test_p18_a_server_that_dies_under_a_hundred_commands(stack: RunningServer, place: Path):
    """Each command is answered, done or refused as unavailable; then all works again; the end leaves nothing (P18)."""
    services = health(stack)["services"]
    assert [services[name]["state"] for name in ("postgresql", "redis")] == ["running", "running"]
    assert set(services) == {kind.name for kind in KINDS}
    (postmaster,) = [one for one in processes_in(place) if re.search("postgres -D", " ".join(words_of(one.pid)))]
    answers: dict[int, Any] = {}
    with (
        BlockingRawClient(stack.port, token=stack.token) as one,
        BlockingRawClient(stack.port, token=stack.token) as two,
    ):
        # Fifty each: a client may have 64 in flight.
        for number in range(100):
            user = {"name": f"User {number}", "email": f"user{number}@example.com"}
            request = {"zKey": "create_Users", "_requestId": number, "zHorizontal": {"values": user}}
            (one if number % 2 else two).send_json(request)
            if number == 50:
                os.kill(postmaster.pid, signal.SIGKILL)
        for client in (one, two):
            mine = 0
            while mine < 50:
                answer = client.next_json()
                if "_requestId" in answer:
                    answers[answer["_requestId"]] = answer
                    mine += 1
        failed = {number: answer for number, answer in answers.items() if "error" in answer}
        assert len(answers) == 100 and {answer["code"] for answer in failed.values()} <= {"unavailable"}, failed
        wait_until_blocking(lambda: health(stack)["services"]["postgresql"]["state"] == "running", "a restart")
        there = {user["email"] for user in one.call("read_Users", {"limit": 1000})["result"]}
    done = {f"user{number}@example.com" for number in answers if number not in failed}
    assert done <= there
    assert stack.stop() == 0
    assert processes_in(place) == []


def test_contact_a_shell_that_says_of_another_postgresql_and_ctrl_c(stack: RunningServer, place: Path):
    """What libpq takes from the shell whatever it is told is left out, and the log names it.

    A terminal sends SIGINT to its group; the servers have their own sessions and are stopped in order (PG29)."""
    assert set(re.findall(r"(PG\w+) is left out", stack.log)) == {"PGSERVICE", "PGDATESTYLE", "PGTZ", "PGGEQO"}
    os.killpg(stack.process.pid, signal.SIGINT)
    assert stack.wait() == 0
    assert processes_in(place) == []
    logs = place / "user" / "zcomm" / "log"
    said = (logs / "postgresql.log").read_text()
    assert said.count("received fast shutdown request") == 1 and "database system is shut down" in said
    assert "User requested shutdown" in (logs / "redis.log").read_text()


def test_contact_a_container_that_is_killed_starts_again(home: Path, place: Path):
    """Its processes have the numbers of those that are dead by now, and what those left behind names them."""
    options = ("--data-dir", str(home / "zcomm"), "--service", "postgresql", "--database", "service:postgresql")
    twistd = [sys.executable, str(scripts() / "twistd"), "-n", "zcomm"]
    command = contained([*twistd, "--listen", f"unix:{home}/socket", *options])
    environ = clean_environ(home, {"POSTGRESQL_PORT": str(unused_port())})
    for _ in range(2):
        server = RunningServer(command, home, environ)
        try:
            number = server.wait_for_log(r"postgresql: ready, pid (\d+)")[1]
            server.wait_for_log(READY)
        finally:
            server.kill()
        wait_until_blocking(lambda: not processes_in(place), "the end of all")
        assert (home / "twistd.pid").read_text() == "1\n"
        # As left by one that was killed while it stopped; sometimes it comes to the end of that before.
        data = Path(home, "zcomm", "services", "postgresql", "data")
        (data / "postmaster.pid").write_text(f"{number}\n{data}\n1700000000\n5432\n\n\n  1 2\nstopping\n")
