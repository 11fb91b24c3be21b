"""Look for input that breaks what must hold of every input: ``python benchmarks/fuzz.py TARGET --runs 100000``.

The targets are those of ``tests/fuzz/targets.py``; each begins with its folder of ``tests/fuzz/corpus`` and is
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
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
#: Bytes of an input. All limits that are looked for lie below.
LONGEST = 8192
#: Seconds that one input may take.
PATIENCE = 10

# Not the folder of this script, whose name is that of the package.
sys.path[:1] = [str(ROOT / "tests"), str(ROOT)]


def guided(name: str, runs: int, seed: int) -> None:
    """Run a target under atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["zcomm", "autobahn", "fuzz"]):
        from fuzz.targets import TARGETS
    work = tempfile.mkdtemp(prefix=f"zcomm-fuzz-{name}-")
    atheris.Setup(
        [
            sys.argv[0], f"-runs={runs}", f"-seed={seed}", f"-max_len={LONGEST}", f"-timeout={PATIENCE}",
            f"-artifact_prefix={CORPUS / name}{os.sep}found-", "-print_final_stats=1", work, str(CORPUS / name),
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


def plain(name: str, runs: int, seed: int) -> int:
    """Run a target on mutations of its corpus; returns the exit status."""
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    chance = random.Random(seed)
    known = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    slowest, begun = 0.0, time.monotonic()
    for _ in range(runs):
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
    print(f"{name}: {runs} inputs in {passed:.1f} s, {runs / passed:.0f}/s, the slowest {slowest * 1000:.1f} ms, nothing found")
    return int(slowest > PATIENCE)


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
    return other[begin:begin + chance.choice((1, 4, 20, 200))]


_PIECES: list[Callable[[random.Random, list[bytes]], bytes]] = [
    _slice, _slice, lambda chance, known: b"", lambda chance, known: bytes((chance.randrange(256),)),
    lambda chance, known: chance.randbytes(chance.randrange(9)),
    lambda chance, known: bytes((chance.choice(b"\0\r\n\t \"'\\/:;,.{}[]()$%_-=&?#@*\x7f\x80\xff09azAZ"),)) * chance.choice((1, 2, 70)),
    lambda chance, known: chance.choice((b"null", b"true", b"1e999", b"-1", b"9" * 20, b"\\ud800", b"__proto__", b"\xed\xa0\x80")),
    lambda chance, known: chance.choice((
        b"!!timestamp ", b"!!int ", b"!!float ", b"!!bool ", b"!!binary ", b"!!set ", b"!!omap ", b"2000-99-99", b"<<: ", b"&a ", b"*a", b"? ", b"{? {} : 1}",
    )),
]


def main() -> int:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(path.name for path in CORPUS.iterdir()))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs [100000]")
    parser.add_argument("--seed", type=int, default=1, help="[1]")
    parser.add_argument("--plain", action="store_true", help="mutate blindly, also where atheris is installed")
    arguments = parser.parse_args()
    if not arguments.plain:
        try:
            guided(arguments.target, arguments.runs, arguments.seed)
        except ImportError as error:
            print(f"not guided: {error}", file=sys.stderr)
    return plain(arguments.target, arguments.runs, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
