"""What a program is assembled from, and what is found wrong with it before anything runs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from zcomm.budget.budgets import Budgets
from zcomm.config import Config
from zcomm.data.schema import demo_schema
from zcomm.errors import ConfigError
from zcomm.host.host import Host
from zcomm.host.program import Program
from zcomm.interfaces import Identity

WRONG = "member: {models: {Users: {actions: [read], rows: {nmae: $name}}}}"
RIGHT = "member: {models: {Users: {actions: [read], rows: {name: $name}}}}"


def test_a_policy_is_held_against_the_schema(tmp_path: Path):
    """A rule on a field there is not would deny everything, or nothing: the start says so, a reload takes nothing."""
    path = tmp_path / "policy.yaml"
    config = Config(tmp_path, policy=path)
    path.write_text(WRONG)
    with pytest.raises(ConfigError) as caught:
        Program(config, Clock(), demo_schema())
    assert str(path) in str(caught.value)
    assert 'role member: models: Users: rows: Users has no field "nmae"' in str(caught.value)
    # A host's models are its own.
    Program(config, Clock())
    path.write_text(RIGHT)
    program = Program(config, Clock(), demo_schema())
    path.write_text(WRONG)
    with pytest.raises(ConfigError):
        program.reload()
    assert program.permissions.rows(Identity("ann", "member"), "Users") == {"name": "ann"}


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest_twisted.ensureDeferred
async def test_the_database_is_its_owners_alone(tmp_path: Path, umask: int):
    """The file that zComm makes and what SQLite puts beside it; others may pass the data directory of root."""
    before = os.umask(umask)
    try:
        host = Host(Config(tmp_path / "data"), reactor)
        await host.start_data()
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
        await host.stopService()
    finally:
        os.umask(before)
    assert modes["zcomm.sqlite3"] == 0o600 and set(modes.values()) == {0o600} and len(modes) > 1


def test_a_host_and_its_program_charge_the_same_accounts(tmp_path: Path):
    """What is done with the host's data, and what waits for clients, are of one budget; which is empty at first."""
    config = Config(tmp_path)
    host = Host(config, Clock())
    program = Program(config, Clock(), None, host)
    assert not len(host.budgets) and program.budgets is host.budgets
    assert Program(config, Clock()).budgets is not host.budgets


def test_what_a_host_of_ones_own_calls_budgets_is_its_own(tmp_path: Path):
    """It is not taken for the accounts of users."""
    host = SimpleNamespace(session={}, budgets=["next year's"])
    assert isinstance(Program(Config(tmp_path), Clock(), None, host).budgets, Budgets)
