"""Look for input that breaks what must hold of every input: ``python benchmarks/fuzz.py TARGET… --seconds 60``.

The targets are those of ``tests/support/fuzz_targets.py``; each begins with its folder of ``tests/fuzz/corpus`` and is
guided by what of zComm's code an input reaches (``pip install atheris``). Where atheris is missing, or with
``--plain``, the same corpus is mutated blindly, which is slower to find anything and needs nothing.

An input that breaks something is kept in the target's corpus as ``found-…``, where the tests replay it until
it breaks nothing; the exit status is then not 0. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
#: Bytes of an input. All limits that are looked for lie below.
LONGEST = 8192
#: Seconds that one input may take.
PATIENCE = 10

# Not the folder of this script, whose name is that of the package.
sys.path[:1] = [str(ROOT / "tests"), str(ROOT)]


def guidance() -> bool:
    """Load the targets so that atheris sees what an input reaches, which takes a while; whether it can be had."""
    try:
        import atheris
    except ImportError:
        return False
    with atheris.instrument_imports(include=["zcomm", "autobahn", "support.fuzz_targets", "support.fuzz_connection"]):
        import support.fuzz_targets  # noqa: F401 (loaded to be watched)
    return True


def guided(name: str, runs: int, seconds: int, seed: int, reached: Path) -> None:
    """Run a target under atheris, which ends the process."""
    import atheris
    from support.fuzz_targets import TARGETS

    reached.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={runs}",
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={LONGEST}",
            f"-timeout={PATIENCE}",
            f"-artifact_prefix={CORPUS / name}{os.sep}found-",
            "-print_final_stats=1",
            str(reached),
            str(CORPUS / name),
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


def plain(name: str, runs: int, seconds: int, seed: int) -> None:
    """Run a target on mutations of its corpus."""
    from support.fuzz_targets import TARGETS

    target = TARGETS[name]
    chance = random.Random(seed)
    known = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    slowest, begun, done = 0.0, time.monotonic(), 0
    while done < runs and not (seconds and time.monotonic() - begun > seconds):
        done += 1
        data = mutated(chance, known)
        before = time.monotonic()
        try:
            target(data)
        except Exception:
            kept = CORPUS / name / f"found-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
            kept.write_bytes(data)
            print(f"{name}: {kept}", file=sys.stderr)
            raise
        slowest = max(slowest, time.monotonic() - before)
    passed = time.monotonic() - begun
    print(
        f"{name}: {done} inputs in {passed:.1f} s, {done / passed:.0f}/s, "
        f"the slowest {slowest * 1000:.1f} ms, nothing found"
    )
    if slowest > PATIENCE:
        raise SystemExit(f"{name}: one input took {slowest:.1f} s")


def mutated(chance: random.Random, known: list[bytes]) -> bytes:
    """One of ``known`` with a few places changed, most often by a piece of itself or of another."""
    data = bytearray(chance.choice(known))
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        place = chance.randint(0, len(data))
        end = min(len(data), place + chance.choice((0, 1, 1, 2, 4, 30)))
        data[place:end] = _PIECES[chance.randrange(len(_PIECES))](chance, known)
    return bytes(data[:LONGEST])


def _slice(chance: random.Random, known: list[bytes]) -> bytes:
    other = chance.choice(known)
    begin = chance.randint(0, len(other))
    return other[begin : begin + chance.choice((1, 4, 20, 200))]


_PIECES: list[Callable[[random.Random, list[bytes]], bytes]] = [
    _slice,
    _slice,
    lambda chance, known: b"",
    lambda chance, known: bytes((chance.randrange(256),)),
    lambda chance, known: chance.randbytes(chance.randrange(9)),
    lambda chance, known: (
        bytes((chance.choice(b"\0\r\n\t \"'\\/:;,.{}[]()$%_-=&?#@*\x7f\x80\xff09azAZ"),)) * chance.choice((1, 2, 70))
    ),
    lambda chance, known: chance.choice(
        (b"null", b"true", b"1e999", b"-1", b"9" * 20, b"\\ud800", b"__proto__", b"\xed\xa0\x80")
    ),
    lambda chance, known: chance.choice(
        (
            b"!!timestamp ",
            b"!!int ",
            b"!!float ",
            b"!!bool ",
            b"!!binary ",
            b"!!set ",
            b"!!omap ",
            b"2000-99-99",
            b"<<: ",
            b"&a ",
            b"*a",
            b"? ",
            b"{? {} : 1}",
        )
    ),
]


def main() -> int:
    """Fuzz the targets, each in a process of its own."""
    known = sorted(path.name for path in CORPUS.iterdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(known)} [all]")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target [100000]")
    parser.add_argument(
        "--seconds", type=int, default=0, help="stop a target after this time, if there are inputs left"
    )
    parser.add_argument("--seed", type=int, default=1, help="[1]")
    parser.add_argument("--plain", action="store_true", help="mutate blindly, also where atheris is installed")
    parser.add_argument(
        "--reached", type=Path, help="a directory for inputs that reach something new, to begin with next time"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(known):
        parser.error(f"no target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    limits = arguments.runs, arguments.seconds, arguments.seed
    is_guided = not arguments.plain and guidance()
    if not is_guided:
        import support.fuzz_targets  # noqa: F401 (loaded once for all that are forked)
    failed = []
    with tempfile.TemporaryDirectory(prefix="zcomm-fuzz-") as scratch:
        for name in arguments.targets or known:
            more = ((arguments.reached or Path(scratch)) / name,) if is_guided else ()
            child = get_context("fork").Process(target=guided if is_guided else plain, args=(name, *limits, *more))
            child.start()
            child.join()
            if child.exitcode:
                failed.append(name)
    if failed:
        print(f"found something: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
