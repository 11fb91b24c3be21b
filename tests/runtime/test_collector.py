"""The collector of garbage, held back."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from zcomm.runtime.collector import Collector


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The collector works at the end as it did before."""
    was_enabled = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if was_enabled else gc.disable)()


def test_nothing_is_collected_until_it_is_released():
    """It is held back once, and goes on once, however often it is released."""
    collector = Collector()
    collector.hold()
    assert not gc.isenabled()
    collector.release()
    assert gc.isenabled()
    gc.disable()
    collector.release()
    assert not gc.isenabled()


def test_whoever_comes_second_does_not_let_it_go_on():
    """Of two at work at once the first one to hold it back releases it."""
    first, second = Collector(), Collector()
    first.hold()
    second.hold()
    second.release()
    assert not gc.isenabled()
    first.release()
    assert gc.isenabled()


def test_a_program_that_has_it_off_keeps_it_off():
    """It is not switched on where it was off."""
    gc.disable()
    collector = Collector()
    collector.hold()
    collector.release()
    assert not gc.isenabled()
