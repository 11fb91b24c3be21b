"""Memory that is freed goes back to the system: when one asks for it, and that it does."""

from __future__ import annotations

import sys
from subprocess import run

import pytest
from support.serverprocess import CHECKOUT

from zcomm.budget.allocator import Giver, giver

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("sizes", "took", "looks"),
    [
        pytest.param([100, 110, 115, 115, 115], 0, [], id="at-rest"),
        pytest.param([100, 150, 180, 180, 102, 102, 102], 0, [1], id="a-crowd-that-is-over"),
        pytest.param([100, *range(110, 200, 10)], 0, [2, 8], id="a-crowd-that-grows"),
        pytest.param([100, *[180, 190] * 8], 0, [1, 7, 15], id="a-crowd-that-goes-on"),
        pytest.param([100, *[180] * 30], 0, [1, 5, 13, 21, 29], id="it-is-in-use"),
        pytest.param([100, 180, 180, 180, 160, 160, 150, 150, 116, 116, 101, 101], 0, [1, 5, 7, 9], id="by-and-by"),
        pytest.param([100, *[180, 150, 150] * 14], 0.1, [1, 31], id="it-takes-long"),
    ],
)
def test_one_asks_when_a_crowd_may_be_over(sizes: list[int], took: float, looks: list[int]):
    """Soon where nothing much happens, seldom in its midst and where it brings nothing, more seldom where it takes
    long; ``sizes`` are in MiB, at the start and at each look."""
    seen: list[int] = []
    given: list[int] = []

    def resident() -> int:
        seen.append(sizes[len(seen)])
        return seen[-1] * MIB

    def give() -> float:
        given.append(len(seen) - 1)
        return took

    giving = Giver(resident, give, lambda call: call())
    for _ in sizes[1:]:
        giving.look()
    assert given == looks


@pytest.mark.skipif(giver() is None, reason="needs the GNU C library and Linux's /proc")
def test_pieces_between_others_go_back(tmp_path):
    """Answers of 60 KB that lie between something that stays are no longer the process' after the look that asks."""
    program = f"""
import sys, threading
sys.path.insert(0, {str(CHECKOUT)!r})
from zcomm.budget.allocator import resident_bytes, give_back_large_memory, giver
give_back_large_memory()
giving = giver()
begun = resident_bytes()
answers, kept = [], []
for number in range(2000):
    answers.append(bytes([number % 250 + 1]) * 60_000)
    kept.append(bytes(3000))
full = resident_bytes() - begun
answers.clear()
freed = resident_bytes() - begun
giving.look()
for thread in threading.enumerate():
    if thread.name == "zcomm-memory":
        thread.join()
left = resident_bytes() - begun
print(full, freed, left)
"""
    done = run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    full, freed, left = (int(number) // MIB for number in done.stdout.split())
    assert full > 100 and freed > 50 and left < 20
