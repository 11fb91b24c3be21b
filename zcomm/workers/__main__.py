"""The program of a worker, which the parent starts: its arguments are its number and the descriptor of its parent."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by its path. What the parent can import, wherever it has found that, the parent says.
    sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
    from zcomm.workers.worker import run

    run(*map(int, sys.argv[1:3]))
