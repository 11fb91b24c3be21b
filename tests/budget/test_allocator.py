"""Memory that is freed goes back to the system: when one asks for it, and that it does."""

from __future__ import annotations

import sys
from subprocess import run

import pytest
from support.serverprocess import CHECKOUT

from zcomm.budget.allocator import MUCH, PATIENCE, STILL, Giver, giver

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("sizes", "looks"),
    [
        pytest.param([(100, 60), (110, 60), (115, 61), (115, 61)], [], id="at-rest"),
        pytest.param([(100, 60), (180, 140), (260, 220), (300, 260), (300, 260)], [], id="in-use"),
        pytest.param([(100, 60), (180, 140), (180, 65), (180, 65), (105, 65)], [3], id="a-crowd-is-over"),
        pytest.param([(100, 60), (180, 140), (180, 65), (180, 65), (180, 65), (180, 65)], [3], id="once-for-each"),
        pytest.param([(100, 60), *((180, 80 + 5 * (n % 2)) for n in range(8))], [6], id="it-goes-on-and-on"),
        pytest.param(
            [(100, 60), (180, 65), (180, 65), (105, 65), (180, 70), (180, 70), (105, 70)], [2, 5], id="another-crowd"
        ),
        pytest.param(
            [(100, 60), (180, 65), (180, 65), (160, 65), (170, 65), (175, 65), (182, 65)], [2, 6], id="more-is-free"
        ),
    ],
)
def test_one_asks_once_a_crowd_is_over(sizes: list[tuple[int, int]], looks: list[int]):
    """Not in its midst, not for little, and not again for what turned out to stay; ``sizes`` are in MiB, those of the
    process and what is in use of them."""
    seen: list[tuple[int, int]] = []
    given: list[int] = []

    def measure() -> tuple[int, int]:
        seen.append(sizes[len(seen)])
        resident, used = seen[-1]
        return resident * MIB, used * MIB

    giving = Giver(measure, lambda: given.append(len(seen) - 1))
    for _ in sizes[1:]:
        giving.look()
    assert given == looks and (MUCH, STILL, PATIENCE) == (16 * MIB, 2 * MIB, 6)


@pytest.mark.skipif(giver() is None, reason="needs the GNU C library and Linux's /proc")
def test_pieces_between_others_go_back(tmp_path):
    """Answers of 60 KB that lie between something that stays are no longer the process' after the look that asks."""
    program = f"""
import sys, threading
sys.path.insert(0, {str(CHECKOUT)!r})
from zcomm.budget.allocator import _resident, give_back_large_memory, giver
give_back_large_memory()
giving = giver()
begun = _resident()
answers, kept = [], []
for number in range(2000):
    answers.append(bytes([number % 250 + 1]) * 60_000)
    kept.append(bytes(3000))
full = _resident() - begun
giving.look()
answers.clear()
freed = _resident() - begun
giving.look()
giving.look()
for thread in threading.enumerate():
    if thread.name == "zcomm-memory":
        thread.join()
left = _resident() - begun
print(full, freed, left)
"""
    done = run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    full, freed, left = (int(number) // MIB for number in done.stdout.split())
    assert full > 100 and freed > 50 and left < 20
