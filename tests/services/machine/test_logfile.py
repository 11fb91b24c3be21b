"""Reading what is new in a log: whole lines, whatever the server and the rotation do meanwhile."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from zcomm.services.machine.logfile import LONGEST_LINE, PIECE, LogFile, LogPlace

BEGINNING = LogPlace(0, 0)


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "one.log", count=1)


def write(log: LogFile, text: str | bytes) -> None:
    descriptor = log.open()
    os.write(descriptor, text.encode() if isinstance(text, str) else text)
    os.close(descriptor)


def test_each_line_comes_once(log: LogFile):
    """One without its end comes as it is, and again when it has grown, until it is whole."""
    assert log.lines_after(BEGINNING) == ([], BEGINNING)
    write(log, "one\ntwo\n")
    lines, place = log.lines_after(BEGINNING)
    assert lines == ["one", "two"] and log.lines_after(place) == ([], place)
    seen = []
    for part in ("th", "ree", "\n", "four\nfi", "ve"):
        write(log, part)
        lines, place = log.lines_after(place)
        seen.append(lines)
        assert log.lines_after(place) == ([], place)
    assert seen == [["th"], ["three"], ["three"], ["four", "fi"], ["five"]]


def test_a_place_is_where_the_end_begins(log: LogFile):
    """Not before what this run wrote, and no further back than asked; a line that has begun before is not whole."""
    write(log, "old\nnew one\nnew two\n")
    assert log.lines_after(log.place(1000, 4))[0] == ["new one", "new two"]
    assert log.lines_after(log.place(10, 4))[0] == ["new two"]
    assert log.lines_after(log.place(1000, 1000))[0] == ["old", "new one", "new two"]
    assert LogFile(log.path.with_name("none")).place(1000, 4) == BEGINNING


def test_a_log_that_is_cut_or_replaced_is_read_from_its_beginning(log: LogFile):
    """By the rotation, or by somebody else; half a line of before is no part of what comes after."""
    write(log, "one\nhalf a li")
    _, place = log.lines_after(BEGINNING)
    log.rotate()
    assert log.lines_after(place)[0] == []
    write(log, "ne\ntwo\n")
    lines, place = log.lines_after(place)
    assert lines == ["ne", "two"]
    log.path.rename(log.path.with_name("away"))
    assert log.lines_after(place) == ([], place)
    write(log, "three, which is longer than what there was before\n")
    assert log.lines_after(place)[0] == ["three, which is longer than what there was before"]


def test_a_long_line_counts_with_its_beginning(log: LogFile):
    """It comes once, however it is written, and what follows it comes whole."""
    place, seen = BEGINNING, []
    for _ in range(30):
        write(log, "x" * 999)
        lines, place = log.lines_after(place)
        seen.append([len(line) for line in lines])
    assert seen == [[n] for n in range(999, LONGEST_LINE, 999)] + [[LONGEST_LINE]] + [[]] * 19
    write(log, "\nafter\n")
    lines, place = log.lines_after(place)
    assert lines == ["after"]
    write(log, "y" * 3 * PIECE + "\nlast\n")
    lines = []
    while place.end < log.size():
        more, place = log.lines_after(place)
        lines += more
    assert lines == ["y" * LONGEST_LINE, "last"]


@pytest.mark.parametrize("seed", range(5))
def test_whole_lines_are_the_lines_of_the_log(log: LogFile, seed: int):
    """In pieces of any size, also in the middle of a character: no line is lost, none comes in parts."""
    chance = random.Random(seed)
    written = "".join(
        "é" * chance.choice((0, 3, 40, 3000, 4999, 5000, 5001, 200_000)) + "\n" for _ in range(40)
    ).encode()
    place, at, lines = BEGINNING, 0, []
    while at < len(written):
        size = chance.choice((1, 50, 4096, 300_000))
        write(log, written[at : at + size])
        at += size
        while place.end < log.size():
            more, place = log.lines_after(place)
            if place.line < place.end == log.size():
                # The last is not whole, and comes again.
                del more[-1:]
            lines += more
    expected = [line[:LONGEST_LINE].decode() for line in written.split(b"\n")[:-1]]
    assert lines == expected
