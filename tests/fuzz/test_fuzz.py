"""Nothing that a peer or a file says brings out anything but what is declared.

The inputs are the same in every run, half a minute of them: what is found is fixed and
kept in ``corpus/``, never a matter of luck.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fuzz_connection import COMPRESSED, OPENED, PAGES
from support.fuzz_targets import TARGETS
from support.rawclient import build_frame, close_payload, handshake
from support.serverprocess import CHECKOUT, clean_environ

pytestmark = pytest.mark.unmeasured

CORPUS = Path(__file__).parent / "corpus"
KEPT = [pytest.param(path, id=f"{path.parent.name}-{path.name}") for path in sorted(CORPUS.glob("*/*"))]

always_the_same = settings(derandomize=True, database=None, max_examples=300, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("path", KEPT)
def test_corpus(path: Path):
    """Each input that was found or made up for its target."""
    TARGETS[path.parent.name](path.read_bytes())


def test_corpus_is_whole():
    """Each target has a corpus and each corpus a target."""
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_the_tool(tmp_path: Path):
    """``benchmarks/fuzz.py`` runs every target; an unknown one is named."""
    tool = [sys.executable, str(CHECKOUT / "benchmarks" / "fuzz.py"), "--plain", "--runs", "20"]
    environ = clean_environ(tmp_path)
    done = subprocess.run(tool, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(": 20 inputs in ")[0] for line in done.stdout.splitlines()] == sorted(TARGETS)
    unknown = subprocess.run([*tool, "frames", "nothing"], env=environ, capture_output=True, text=True)
    assert unknown.returncode == 2 and "no target: nothing" in unknown.stderr


def spoiled(target: str) -> st.SearchStrategy[bytes]:
    """Inputs of the corpus, cut, joined, and with a few bytes replaced."""
    known = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]

    def spoil(first: bytes, second: bytes, begin: float, end: float, piece: bytes) -> bytes:
        return first[: int(begin * len(first))] + piece + second[int(end * len(second)) :]

    place = st.floats(0, 1)
    return st.one_of(
        st.binary(max_size=200),
        st.sampled_from(known),
        st.builds(spoil, st.sampled_from(known), st.sampled_from(known), place, place, st.binary(max_size=8)),
    )


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"connection"}))
def test_any_bytes(target: str):
    """Random bytes, and the corpus spoiled."""

    @always_the_same
    @given(spoiled(target))
    def anything(data: bytes) -> None:
        TARGETS[target](data)

    anything()


# -- nearly right input, which gets further than random bytes

texts = st.one_of(
    st.sampled_from(
        ["id", "name", "Users", "age__gte", "email", "$or", "$not", "zKey", "_requestId", "é", "\u0000", "__proto__"]
    ),
    st.text(max_size=12),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
fields = st.sampled_from(["id", "name", "email", "active", "age", "role", "last_login", "created_at", "nothing"])
operators = st.sampled_from(
    ["", "__eq", "__ne", "__gt", "__in", "__not_in", "__like", "__ilike", "__contains", "__between", "__isnull", "__x"]
)
filters = st.recursive(
    st.dictionaries(st.builds(str.__add__, fields, operators), values, max_size=3),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["$or", "$and"]), st.lists(inner, max_size=3), max_size=1),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=6,
)
requests = st.fixed_dictionaries(
    {
        "action": st.sampled_from(["create", "read", "update", "delete", "upsert", "drop"]),
        "model": st.sampled_from(["Users", "Messages", "users", None]),
    },
    optional={
        "where": filters,
        "filters": filters,
        "values": st.dictionaries(fields, values, max_size=4),
        "all": st.booleans(),
        "fields": st.lists(fields, max_size=3),
        "order_by": st.one_of(texts, st.lists(texts, max_size=2)),
        "limit": values,
        "offset": values,
        "conflict_fields": st.lists(fields, max_size=2),
        "_idempotencyKey": texts,
    },
)


def as_json(value: Any) -> bytes:
    """JSON, and for what has no form in it the nearest that Python writes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


@always_the_same
@given(st.builds(as_json, requests))
def test_requests(data: bytes):
    """CRUD requests, most of their parts right."""
    TARGETS["commands"](data)


@always_the_same
@given(
    st.builds(
        as_json,
        st.fixed_dictionaries(
            {"zKey": values}, optional={"zHorizontal": values, "_requestId": values, "cmd": values, "more": values}
        ),
    )
)
def test_messages(data: bytes):
    """Messages whose parts are of any kind."""
    TARGETS["messages"](data)


tokens = st.sampled_from(
    [
        "f",
        ",",
        "{",
        "}",
        "[",
        "]",
        ":",
        "'",
        '"',
        "\\",
        "\\'",
        "a: ",
        "b",
        "1",
        "-1.5e3",
        "true",
        "None",
        "zContext",
        "x.y",
        " ",
        "\n",
        "(",
        ")",
        "/a/b",
        "..",
        "'a\\'b'",
        '"c"',
        "é",
    ]
)


@always_the_same
@given(st.lists(tokens, max_size=25).map(lambda parts: "".join(["f, ", *parts]).encode()))
def test_grammar(data: bytes):
    """Arguments made of everything the grammar knows, in any order."""
    TARGETS["grammar"](data)


parameters = st.sampled_from(
    [
        "client_max_window_bits",
        "client_max_window_bits=15",
        "server_max_window_bits=8",
        'server_max_window_bits="10"',
        "server_no_context_takeover",
        "client_no_context_takeover",
        "client_no_context_takeover=1",
        "x",
        "=",
        '"',
    ]
)
offers = st.lists(
    st.builds(
        lambda name, given: "; ".join([name, *given]),
        st.sampled_from(["permessage-deflate", "x"]),
        st.lists(parameters, max_size=4),
    ),
    max_size=4,
).map(", ".join)


@always_the_same
@given(offers.map(str.encode))
def test_offers(data: bytes):
    """Offers of compression, legal and not."""
    TARGETS["deflate"](data)


header_lines = st.one_of(
    st.sampled_from(
        [
            "Host: 127.0.0.1",
            "Host: [::1",
            "Origin: http://localhost:3000",
            "Origin: null",
            "Authorization: Bearer alice-token",
            "Authorization: Basic x",
            "Sec-WebSocket-Protocol: zbifrost.v1, bearer.alice-token",
            "Sec-WebSocket-Protocol: a,a",
            "Sec-WebSocket-Version: 8",
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            " folded",
            "no colon",
            "Upgrade: h2c",
            "Sec-WebSocket-Extensions: permessage-deflate",
            "X: \x85\x0b",
            "X:\x00",
            "Cookie: \xc3\x85",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=30),
)


def head(path: str, lines: list[str], token: str | None, left_out: list[str], method: str) -> bytes:
    """A request head with ``lines`` more, and some of the usual ones missing."""
    request = handshake("127.0.0.1", path, token=token, without=left_out, method=method)
    more = "".join(line + "\r\n" for line in lines).encode("latin-1")
    return request[:-2] + more + b"\r\n"


heads = st.builds(
    head,
    st.sampled_from(
        ["/", "/?token=alice-token", "/?token=&token=x", "/health", "/metrics", "*", "http://127.0.0.1/", "//e/", "/#"]
    ),
    st.lists(header_lines, max_size=3),
    st.sampled_from([None, "alice-token", "wrong"]),
    st.lists(
        st.sampled_from(["Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version"]), max_size=1
    ),
    st.sampled_from(["GET", "GET", "GET", "HEAD", "POST"]),
)


@always_the_same
@given(heads)
def test_heads(data: bytes):
    """Request heads, nearly right."""
    TARGETS["handshake"](data[:-4])


def deflated(text: bytes) -> bytes:
    """A compressed frame."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -12)
    return build_frame(1, (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)


payloads = st.one_of(
    st.sampled_from(
        [
            b'{"zKey":"ping","_requestId":1}',
            b'{"zKey":"later","zHorizontal":[1],"_requestId":"a"}',
            b'{"zKey":"read_Users"}',
            b"{",
            b"",
            b"\xff",
            b'"\xe2\x82',
            b"[" * 70,
            b'{"zKey":"ping","zHorizontal":"' + b"x" * 5000 + b'"}',
            b"x" * 4096,
            b"x" * 4097,
        ]
    ),
    st.binary(max_size=40),
)
masks = st.sampled_from([b"\0\0\0\0", b"\x37\xfa\x21\x3d", None])
frames = st.one_of(
    st.builds(lambda text: build_frame(1, text), payloads),
    st.builds(lambda text: build_frame(1, text), payloads),
    st.builds(deflated, payloads),
    st.builds(lambda text, fin: build_frame(0, text, fin=fin), payloads, st.booleans()),
    st.builds(lambda text: build_frame(1, text, fin=False), payloads),
    st.builds(lambda opcode, text: build_frame(opcode, text[:125]), st.sampled_from([9, 10]), payloads),
    st.builds(
        lambda code: build_frame(8, close_payload(code)), st.sampled_from([1000, 1001, 1005, 1016, 3000, 4999, 0])
    ),
    st.builds(
        lambda opcode, text, fin, rsv, mask: build_frame(opcode, text[:125], fin=fin, rsv=rsv, mask=mask),
        st.integers(0, 15),
        payloads,
        st.booleans(),
        st.integers(0, 7),
        masks,
    ),
    st.builds(
        lambda claim, width: build_frame(1, b"", claim=claim, width=width),
        st.sampled_from([0, 5, 125]),
        st.sampled_from([2, 8]),
    ),
    st.sampled_from(
        [build_frame(1, b"", claim=2**63, width=8), build_frame(1, b"", claim=4097), build_frame(1, b"5") * 300]
    ),
    st.binary(max_size=20),
)


@settings(always_the_same, max_examples=800)
@given(st.lists(frames, max_size=6).map(b"".join), st.integers(0, 255), st.sampled_from([OPENED, OPENED | COMPRESSED]))
def test_frames_of_a_client(stream: bytes, cuts: int, flags: int):
    """Right and wrong frames of a client that was let in, cut anywhere."""
    TARGETS["connection"](bytes((flags, cuts)) + stream)


@settings(always_the_same, max_examples=400)
@given(
    heads,
    st.lists(st.one_of(heads, frames), max_size=3).map(b"".join),
    st.integers(0, 255),
    st.sampled_from([0, COMPRESSED, PAGES]),
)
def test_connection_from_its_first_byte(first: bytes, then: bytes, cuts: int, flags: int):
    """Right and wrong handshakes, and whatever follows."""
    TARGETS["connection"](bytes((flags, cuts)) + first + then)


@settings(always_the_same, max_examples=400)
@given(spoiled("connection"))
def test_connection_spoiled(data: bytes):
    """Conversations of the corpus with a few bytes changed."""
    TARGETS["connection"](data)
