"""Timers run on the monotonic clock, whatever happens to the time of day, from any moment on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.serverprocess import CHECKOUT, clean_environ
from twisted.internet.task import Clock

from zcomm.runtime.clock import use_monotonic

PROGRAM = """
import sys, time
from importlib import import_module
import_module("twisted.internet." + sys.argv[1]).install()
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from zcomm.runtime.clock import use_monotonic

ticks, early = [], []
loop = LoopingCall(lambda: ticks.append(reactor.seconds()))
loop.clock = reactor
far = reactor.callLater(600, early.append, "a call from before")

def begin():
    use_monotonic(reactor)
    use_monotonic(reactor)
    loop.start(0.05, now=False)
    further = reactor.callLater(600, early.append, "a call from after")
    jump = float(sys.argv[2])
    real = time.time
    time.time = lambda: real() + jump
    finish()

def finish():
    if len(ticks) < 5:
        reactor.callLater(0.05, finish)
    else:
        reactor.stop()

reactor.callLater(0, begin)
reactor.run()
assert not early, early
assert all(later - earlier < 60 for earlier, later in zip(ticks, ticks[1:])), ticks
assert 590 < far.getTime() - reactor.seconds() <= 600
# A timer that is always due would spin; these few ticks cost next to nothing.
assert time.process_time() < 20
"""


@pytest.mark.parametrize("reactor", ["epollreactor", "asyncioreactor"])
@pytest.mark.parametrize("jump", [3600, -3600, 86400 * 365])
def test_a_jump_of_the_wall_clock_moves_no_timer(reactor: str, jump: int, tmp_path: Path):
    """The change is made while the reactor runs; calls from before and after wait for their time."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, reactor, str(jump)],
        cwd=CHECKOUT,
        env=clean_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_clock_of_tests_is_left_alone():
    """Whoever brings a clock knows why."""
    clock = Clock()
    use_monotonic(clock)
    clock.advance(5)
    assert clock.seconds() == 5
