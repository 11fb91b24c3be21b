"""The types of fields: what is accepted, what is refused, and the form in JSON."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.data.requests import Command
from zcomm.data.rules import FORMATS, Rules
from zcomm.data.values import KINDS, Beyond, json_pieces, json_text, json_value, kind_named

DEEP: list = []
for _ in range(70):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("str", 5),
        ("str", None),
        ("str", ["a"]),
        ("str", {"a": 1}),
        ("str", "a\0"),
        ("str", "\ud800"),
        ("int", "5"),
        ("int", "9007199254740991"),
        ("int", "09007199254740993"),
        ("int", "+9007199254740993"),
        ("int", " 9007199254740993"),
        ("int", "9_007_199_254_740_993"),
        ("int", "9007199254740993.0"),
        ("int", "٩٠٠٧١٩٩٢٥٤٧٤٠٩٩٣"),
        ("int", "9223372036854775808"),
        ("int", "9" * 4000),
        ("int", 9007199254740994.0),
        ("int", 5.0),
        ("int", True),
        ("int", 2**63),
        ("int", -(2**63) - 1),
        ("int", 2**70),
        ("float", "5"),
        ("float", True),
        ("float", float("nan")),
        ("float", float("inf")),
        ("float", 10**400),
        ("decimal", "x"),
        ("decimal", True),
        ("decimal", 0.1 + 0.2),
        ("decimal", 1234567890123456789012345678901.25),
        ("decimal", 1e15),
        ("decimal", "nan"),
        ("decimal", "sNaN"),
        ("decimal", "inf"),
        ("decimal", "1_000"),
        ("decimal", " 1"),
        ("decimal", "\u0661"),
        ("decimal", "1e99"),
        ("decimal", "1" * 39),
        ("decimal", "1e-39"),
        ("decimal", ""),
        ("decimal", []),
        ("decimal", "1" * 5000),
        ("bool", 1),
        ("bool", 0),
        ("bool", "true"),
        ("date", "2024-02-30"),
        ("date", "12001-02-29"),
        ("date", "0000-01-01"),
        ("date", "12000-01-01 00:00:00+00"),
        ("date", "Infinity"),
        ("datetime", "12000-01-01 25:00:00"),
        ("datetime", "0044-03-15 00:00:00+01 BC"),
        ("date", 5),
        ("date", "2024-02-01T00:00"),
        ("datetime", "x"),
        ("datetime", 5),
        ("datetime", "2024-10-15T25:00"),
        ("datetime", "2" * 100),
        ("datetime", "9999-12-31T23:00:00-14:00"),
        ("time", "8"),
        ("time", "24:00"),
        ("time", "08:00Z"),
        ("time", 8),
        ("uuid", "x"),
        ("uuid", 5),
        ("uuid", "z" * 32),
        ("bytes", "a"),
        ("bytes", "ä"),
        ("bytes", 5),
        ("bytes", "AAAA\n"),
        ("json", {"a": float("nan")}),
        ("json", ["a\ud800"]),
        ("json", {"\udc00": 1}),
        ("json", {"a": 10**4300}),
        ("json", DEEP),
        ("json", {1: 2}),
        ("json", {"a": {1, 2}}),
        ("json", b"x"),
    ],
)
def test_refused(kind, value):
    """A value of another type or beyond the type's bounds is refused with a reason that reads on."""
    with pytest.raises(ValueError, match=r"^must ") as caught:
        KINDS[kind].parse(value)
    assert len(str(caught.value)) < 100


#: For each kind a value, and characters that Python's parsers take in some place of it.
LAX = {
    "int": ["9007199254740993", "+9007199254740993"],
    "decimal": ["19.90", "1e3"],
    "date": ["2024-10-15"],
    "datetime": ["2024-10-15T08:30:00Z", "2024-10-15 08:30:00.5+02:00", "2024-10-15"],
    "time": ["08:30:00", "08:30:00.5"],
    "uuid": ["2f1ae7c0-0000-4000-8000-000000000001", "{2f1ae7c0-0000-4000-8000-000000000001}", "2f1ae7c0" * 4],
    "bytes": ["AAECAw==", "AAEC"],
}
ODD = (*" _+-x{}\n\t", "\u0662", "\uff12", "\u00a0", "\u2212", "urn:uuid:")


def test_contact_texts_that_python_parses_more_laxly():
    """Blanks, underscores, signs, digits of other scripts and shorter forms are refused, wherever they stand."""
    taken = []
    for kind, texts in LAX.items():
        parse = KINDS[kind].parse
        for text in texts:
            for place in range(len(text) + 1):
                for odd in ODD:
                    # In the place of a character, and before it.
                    for changed in (text[:place] + odd + text[place + 1 :], text[:place] + odd + text[place:]):
                        try:
                            parse(changed)
                        except ValueError:
                            continue
                        if changed != text and changed not in TAKEN:
                            taken.append((kind, changed))
    assert taken == []
    for kind, text in SHORTER:
        with pytest.raises(ValueError, match=r"^must "):
            KINDS[kind].parse(text)


#: What says the same value, or another one that is well-formed.
TAKEN = {
    *("2024-10-15 08:30:00Z", "2024-10-15 08:30:00.5-02:00"),
    *("-9007199254740993", "+19.90", "-19.90", "+1e3", "-1e3", "1e+3", "1e-3", "+9.90", "-9.90", "1e+", "1e-"),
    # Of base64 the sign is a letter.
    *(f"{text[:place]}{odd}{text[place + 1 :]}" for text in LAX["bytes"] for odd in "+x" for place in range(len(text))),
}
#: ISO 8601 has more forms than anybody has described here.
SHORTER = [
    *(("date", text) for text in ("20241015", "2024-W42-2", "2024W422", "2024-289", "2024-10", "24-10-15")),
    *(("datetime", text) for text in ("2024-10-15-05:00", "2024-10-15+02:00", "2024-10-15X08:30", "20241015T083000")),
    *(("datetime", text) for text in ("2024-10-15T08", "2024-10-15T0830", "2024-W42-2T08:30", "2024-10-15T08:30:00z ")),
    *(("time", text) for text in ("8", "0830:00", "08:3000", "T08:30", "08:30+02", "08:30:00.")),
    *(("uuid", text) for text in ("2-f-1-a-e-7c000040008000000000000001", "{" + "2f1ae7c0" * 4 + "}", "0x" + "1" * 30)),
]


@pytest.mark.parametrize(
    ("kind", "value", "parsed", "shown"),
    [
        ("str", "", "", ""),
        ("str", "'; DROP TABLE x", "'; DROP TABLE x", "'; DROP TABLE x"),
        ("int", 2**63 - 1, 2**63 - 1, 2**63 - 1),
        ("int", "9007199254740993", 2**53 + 1, 2**53 + 1),
        ("int", "-9223372036854775808", -(2**63), -(2**63)),
        ("float", 5, 5.0, 5.0),
        ("float", "-Infinity", float("-inf"), "-Infinity"),
        ("decimal", "19.90", Decimal("19.90"), "19.90"),
        ("decimal", "9" * 38, Decimal("9" * 38), "9" * 38),
        ("decimal", "1234567890123456789012345678901.25", Decimal("1234567890123456789012345678901.25"), None),
        ("decimal", "-0." + "0" * 37 + "1", Decimal("-1e-38"), None),
        ("decimal", "0e99999", Decimal(0), "0"),
        ("decimal", "-Infinity", Decimal("-Infinity"), None),
        ("decimal", 0.1, Decimal("0.1"), "0.1"),
        ("decimal", 999999999999.999, Decimal("999999999999.999"), "999999999999.999"),
        ("decimal", 10**37, Decimal(10**37), str(10**37)),
        ("decimal", 3, Decimal(3), "3"),
        ("decimal", "-0.00", Decimal("0.00"), "0.00"),
        ("decimal", "1e3", Decimal(1000), "1000"),
        ("date", "2024-02-29", date(2024, 2, 29), "2024-02-29"),
        ("datetime", "2024-10-15", datetime(2024, 10, 15, tzinfo=UTC), "2024-10-15T00:00:00Z"),
        ("datetime", "2024-10-15T08:30:00+02:00", datetime(2024, 10, 15, 6, 30, tzinfo=UTC), "2024-10-15T06:30:00Z"),
        (
            "datetime",
            "2024-10-15 08:30:00.5",
            datetime(2024, 10, 15, 8, 30, 0, 500000, UTC),
            "2024-10-15T08:30:00.500000Z",
        ),
        (
            "datetime",
            "2024-10-15T08:30:00.123Z",
            datetime(2024, 10, 15, 8, 30, 0, 123000, UTC),
            "2024-10-15T08:30:00.123000Z",
        ),
        ("time", "08:30", time(8, 30), "08:30:00"),
        ("date", "infinity", Beyond("infinity", ()), None),
        ("date", "0044-03-15 BC", Beyond("0044-03-15 BC", ()), None),
        ("datetime", "12000-01-01 00:00:00+00", Beyond("12000-01-01 00:00:00+00", ()), None),
        ("time", "24:00:00", Beyond("24:00:00", ()), None),
        ("uuid", "{" + str(UUID(int=10)).upper() + "}", UUID(int=10), str(UUID(int=10))),
        (
            "uuid",
            "0b54be9a6f5c4c8e9f0e0c6a4d3f8f10",
            UUID("0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"),
            "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10",
        ),
        ("bytes", "AAEC", b"\0\1\2", "AAEC"),
        ("json", {"a": [1, None, "x"]}, {"a": [1, None, "x"]}, {"a": [1, None, "x"]}),
        ("json", {"\0": ["a\0"]}, {"\0": ["a\0"]}, {"\0": ["a\0"]}),
    ],
)
def test_accepted(kind, value, parsed, shown):
    """A value becomes the type's own, and JSON again."""
    assert KINDS[kind].parse(value) == parsed
    assert type(KINDS[kind].parse(value)) is type(parsed)
    assert KINDS[kind].show(parsed) == (value if shown is None else shown)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("str", st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
        ("int", st.integers(-(2**63), 2**63 - 1)),
        ("float", st.floats(allow_nan=False, allow_infinity=False)),
        (
            "decimal",
            st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**20), max_value=10**20),
        ),
        ("bool", st.booleans()),
        ("date", st.dates()),
        ("datetime", st.datetimes(timezones=st.just(UTC))),
        ("time", st.times()),
        ("uuid", st.uuids()),
        ("bytes", st.binary()),
    ],
)
def test_round_trip(kind, values):
    """What is shown is JSON, and is accepted again as the same value."""

    @given(values)
    def check(value):
        shown = KINDS[kind].show(value)
        assert KINDS[kind].parse(json.loads(json.dumps(shown))) == value

    check()


def test_beyond():
    """What Python's types do not reach has its place in time among what they do."""
    parse = KINDS["datetime"].parse
    texts = ["-infinity", "4713-01-01 00:00:00+00 BC", "0044-03-15 BC", "0044-03-16 BC", "0001-01-01", "2024-01-01"]
    texts += ["9999-12-31T23:59:59Z", "10000-01-01", "12000-01-01 00:00:00+00", "infinity"]
    moments = [parse(text) for text in texts]
    for at, one in enumerate(moments):
        for other, another in enumerate(moments):
            assert ((one < another), (one <= another), (one > another), (one >= another), (one == another)) == (
                (at < other),
                (at <= other),
                (at > other),
                (at >= other),
                (at == other),
            ), (one, another)
    assert KINDS["time"].parse("23:59:59.999999") < KINDS["time"].parse("24:00:00")


def test_rules_of_values_beyond_numbers():
    """A bound of a field holds for infinity, and no bound lets NaN through."""
    for kind in ("float", "decimal"):
        parse = KINDS[kind].parse
        low, high = Rules(min=parse(0)), Rules(max=parse(0))
        assert low.broken_by(parse("NaN"), KINDS[kind]) and high.broken_by(parse("NaN"), KINDS[kind])
        assert low.broken_by(parse("-Infinity"), KINDS[kind]) and high.broken_by(parse("Infinity"), KINDS[kind])
        assert not low.broken_by(parse("Infinity"), KINDS[kind])
    day = KINDS["date"].parse
    assert Rules(max=day("2024-01-01")).broken_by(day("infinity"), KINDS["date"]) == "must be at most 2024-01-01"
    assert Rules(min=day("0001-01-01")).broken_by(day("0044-03-15 BC"), KINDS["date"])
    assert not Rules(max=day("infinity")).broken_by(day("12000-01-01"), KINDS["date"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("string", "str"),
        ("TEXT", "str"),
        ("integer", "int"),
        ("Bool", "bool"),
        ("timestamp", "datetime"),
        ("varchar", None),
        ("", None),
    ],
)
def test_names(name, kind):
    """Types have the names that schemas use for them."""
    assert kind_named(name) is (KINDS[kind] if kind else None)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            "email",
            ["a@b.cd", "first.last+tag@sub.example.org", "ü@exämple.de"],
            [
                "",
                "a",
                "a@b",
                "@b.cd",
                "a@",
                "a b@c.de",
                "a@b..cd",
                "a@.cd",
                "a@b.",
                "a@b@c.de",
                "x" * 65 + "@b.cd",
                "a@" + "b." * 130 + "cd",
                "a@b.cd\n",
                "\ra@b.cd",
            ],
        ),
        (
            "url",
            ["http://a", "https://user@a.b:8080/c?d=e#f", "http://[::1]/"],
            [
                "",
                "a.b",
                "ftp://a",
                "javascript:alert(1)",
                "http://",
                "http://a b",
                "http://a:99999",
                "http://a\n",
                "http://[",
                "https://" + "a" * 2050,
            ],
        ),
        (
            "phone",
            ["+49 (30) 1234-567", "110", "0049.30/123"],
            ["", "12", "abc", "+", "1" * 16, "+1+2", "٣٣٣", "123\n"],
        ),
    ],
)
def test_formats(kind, good, bad):
    """Formats accept what people have and refuse what they mistype."""
    check, reason = FORMATS[kind]
    assert [text for text in good if not check(text)] == []
    assert [text for text in bad if check(text)] == []
    assert reason.startswith("must be")


def test_contact_a_zero_has_its_sign():
    """A zero with a sign is one in JSON as well, however it is written there."""
    text = '[-0, 0, -0.0, -0e0, {"a-0": -0}, "-0", -0.5, "2024-01-02"]'
    assert json.dumps(json_value(text)) == '[-0.0, 0, -0.0, -0.0, {"a-0": -0.0}, "-0", -0.5, "2024-01-02"]'
    assert json.dumps(json_value("-0")) == "-0.0"


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        list(range(30_000)),
        [[]] * 15_000,
        [{"b": [1, {"a": None}], "a": "é\u2028"}] * 5000,
        {f"k{n % 7}{n}": [n, {"x": [1.5] * (n % 3)}] for n in range(6000)},
        {"b": {"d": [True] * 20_000, "c": {}}, "a": [[[["x"]]]]},
        [10**3999] * 40,
        ["x" * 4_000_000],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_b11_json_is_written_in_pieces_as_it_is_at_once(value):
    """The pieces of a large value make up the text that it has, and none of them takes long to make."""
    assert json_text(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    pieces = json_pieces(value, json.JSONEncoder(sort_keys=True))
    assert "".join(pieces) == json.dumps(value, sort_keys=True)
    asked = Command(action="create", model="Things", values={"j": value})
    written = json.dumps(["create", "Things", {"j": value}, None, None, False], sort_keys=True)
    assert asked.digest() == hashlib.sha256(written.encode()).hexdigest()


@pytest.mark.parametrize(
    "value",
    [
        [[1, "a\ud83d"]],
        {"a": [{"b\ude00": 1}]},
        ["\ud800"],
        {"\udc00": 1},
        [0, [-(10**4300)]],
        [1.5, float("nan")],
        [[float("inf")]],
        [(1,)],
        [{1: 2}],
        [{"a": {1, 2}}],
    ],
)
def test_b11_json_is_refused_at_any_depth(value):
    """What JSON or a database does not have is found wherever it stands."""
    for depth in (1, 20):
        whole = value
        for _ in range(depth):
            whole = [True, {"x": whole}, "z"]
        with pytest.raises(ValueError):
            KINDS["json"].parse(whole)
    nested: Any = 1
    for _ in range(63):
        nested = [nested]
    assert KINDS["json"].parse(nested) == nested
    with pytest.raises(ValueError, match="deeper"):
        KINDS["json"].parse([nested])
