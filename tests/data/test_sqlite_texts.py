"""Texts of SQLite that are read of bytes, and without their case: in pieces, with what they are at once."""

from __future__ import annotations

import random

import pytest

from zcomm.data.drivers.sqlite_texts import PIECE, Folding, decoded

#: Characters that become several, that end a word in another form, and that have several bytes.
CHARACTERS = "aZ İıΣσςΟß\u0301Éé😀ǅ\ufb01"


@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_b2_long_texts_are_folded_in_pieces_as_short_ones_are(length: int):
    """Of a text and of its bytes alike, wherever a piece ends: within a character, or at the end of a word."""
    chance = random.Random(length)
    for shift in range(4):
        text = "x" * shift + "".join(chance.choices(CHARACTERS, k=length))
        expected = "".join(each.lower().replace("ς", "σ") for each in text)
        assert Folding()(text) == Folding()(text.encode()) == expected


def test_the_sigma_at_the_end_of_a_word_is_no_other_letter():
    """A word in capitals is found within a longer one, and the other way round."""
    fold = Folding()
    assert fold("ΟΔΟΣ") == fold("οδος") == fold("Οδοσ")
    assert fold("ΟΔΟΣ") in fold("οδοσ" + "τρωτηρ")


@pytest.mark.parametrize("piece", [b"\xff", b"\xe2\x82a", b"\xf0\x9f\x98", "é".encode(), "😀".encode(), b"ab"])
def test_b2_what_is_no_utf8_is_read_in_pieces_as_it_is_at_once(piece: bytes):
    """With the same characters in the place of what is none, wherever a piece ends."""
    for shift in range(4):
        data = b"x" * shift + piece * (2 * PIECE // len(piece))
        assert decoded(data) == data.decode("utf-8", "replace")


def test_b2_the_same_text_is_folded_once_in_a_statement():
    """Many conditions on one column of a row take the case from it once; nothing is kept beyond the statement."""
    fold = Folding()
    text = "É" * 2 * PIECE
    once = fold(text.encode())
    assert fold(text.encode()) is once
    fold.forget()
    assert fold(text.encode()) is not once


@pytest.mark.parametrize("value", [None, 5, 1.5])
def test_what_is_no_text_has_no_case(value: object):
    """It stays what it is."""
    assert Folding()(value) == value
