"""Which PostgreSQL opens a data directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcomm.services.kinds.postgresql.programs import choose_postgresql, major
from zcomm.services.machine.installations import Installation


def installation(flavour: str, *version: int, source: str = "PATH", tree: tuple[Path, ...] = ()) -> Installation:
    return Installation(flavour, version, Path(f"/opt/{flavour}-{version[0]}/bin/server"), source, tree)


@pytest.mark.parametrize(
    "one,written",
    [
        (installation("postgresql", 15, 20), "15"),
        (installation("postgresql", 9, 6, 24), "9.6"),
        (installation("postgresql", 19), "19"),
    ],
)
def test_the_major_version_is_written_as_in_a_data_directory(one, written):
    """Before version 10 the first two numbers counted."""
    assert major(one) == written


def test_the_data_directory_chooses_the_version():
    """Its own major version first, the newest of it; a new directory gets the newest of all."""
    found = [installation("postgresql", 15, 2), installation("postgresql", 15, 20), installation("postgresql", 18, 6)]
    assert choose_postgresql(found, "15") is found[1]
    assert choose_postgresql(found, None) is found[2]
    assert choose_postgresql(found, "14") is None
    assert choose_postgresql([], None) is None


def test_of_equals_the_package_of_the_system_is_taken():
    """A wheel of the same version is the second choice."""
    wheel = installation("postgresql", 18, 6, source="wheel x", tree=(Path("/x"),))
    package = installation("postgresql", 18, 6)
    assert choose_postgresql([wheel, package], None) is package
