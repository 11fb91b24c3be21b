"""What an admitted user with few rights may ask for: each as much of it as there is, over some connections.

The tables, rights and functions are those of :mod:`attacks.stage`. A user reconnects when it is hung up on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from typing import Any

from herd import TEXT, masked

from attacks.visitors import Crowd, Visitor, handshake, message

KIB, MIB = 1024, 1024 * 1024
#: MB that the server may grow by: where no result is in flight, and where there are some.
FEW, RESULTS = 5.0, 64.0


@dataclass(frozen=True)
class UserAttack:
    """What the connections of one user ask for.

    :ivar says: the frames of the connection of a number, without an end.
    :ivar connections: how many there are.
    :ivar in_flight: requests of each that wait for an answer.
    :ivar rate: bytes a second that each takes; 0 for nothing.
    :ivar pace: messages a second of all together.
    :ivar rows: what is in the tables before, by name (:data:`attacks.stage.ROWS`).
    :ivar options: what the server is started with.
    :ivar listeners: other users who hear of what they may read, a megabyte a second each.
    :ivar headers: of the handshake.
    :ivar stage: ``usual``, or ``many`` for a schema of sixty models, or ``hosted`` for a host with users of its own.
    :ivar databases: whether it is tried on each database.
    :ivar writes: whether it may fill the disk with what it creates.
    :ivar growth: MB that the server may grow by.
    """

    says: Callable[[int], Iterator[bytes]]
    connections: int = 2
    in_flight: int = 64
    rate: float = float("inf")
    pace: float = float("inf")
    rows: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    listeners: int = 0
    headers: tuple[str, ...] = ()
    stage: str = "usual"
    databases: bool = True
    writes: bool = False
    growth: float = RESULTS

    def attacker(self, port: int, tokens: dict[str, str]) -> Crowd:
        """The other process."""
        opening = handshake(port, tokens["attacker"], *self.headers)
        listening = handshake(port, tokens["listener"])

        def join(number: int) -> Visitor:
            return Visitor(port, opening, self.says(number), self.in_flight, self.rate)

        def listen(number: int) -> Visitor:
            return Visitor(port, listening, None, rate=1e6)

        return Crowd(self.connections, join, self.pace, listeners=self.listeners, listener=listen)


def over_and_over(*frames: bytes) -> Callable[[int], Iterator[bytes]]:
    """The same frames again and again."""
    return lambda number: cycle(frames)


def made(make: Callable[[int], bytes]) -> Callable[[int], Iterator[bytes]]:
    """A frame of each number; no two connections have the same ones."""
    return lambda number: (make(each) for each in count(number * 1_000_000_000))


def read(model: str, where: Any = None, **more: Any) -> bytes:
    """A read."""
    return message(f"read_{model}", {**({} if where is None else {"where": where}), **more})


def patterns(length: int) -> Iterator[bytes]:
    """One of each operator, as dear as its length allows."""
    long = "a" * (length - 1) + "b"
    joker = ("%a" * length)[: length - 1] + "b"
    for operator, pattern in (
        ("contains", long),
        ("startswith", long),
        ("endswith", "b" + long[:-1]),
        ("like", joker),
        ("ilike", joker),
        ("ilike", "%" + long[1:]),
    ):
        yield read("Texts", {f"body__{operator}": pattern}, fields=["id"])


def conditions(length: int, number: int = 200) -> bytes:
    """A read with so many conditions that try a pattern at each place of a text."""
    joker = ("%a" * length)[: length - 4]
    either = [{"body__ilike": f"{joker}b{each:03}"} for each in range(number)]
    return read("Texts", {"$or": either}, fields=["id"])


def looking(operator: str, text: str) -> bytes:
    """A read with as many conditions that look into a text as there may be: for each a database may make a copy."""
    return read("Texts", {"$or": [{f"body__{operator}": text.format(each)} for each in range(32)]}, fields=["id"])


#: Beyond ASCII, what a function of ours has to fold on SQLite.
FOLDED = looking("ilike", "%é{:03}a%")
LOOKING = (
    FOLDED,
    looking("ilike", "%x{:03}a%"),
    looking("ilike", "%é{:02}_"),
    looking("like", "{:03}_"),
    looking("contains", "x{:03}"),
    looking("endswith", "x{:03}"),
)


def unlike(operator: str, value: Any) -> bytes:
    """A read with as many comparisons of large texts as there may be."""
    return read("Texts", {"$and": [{f"body__{operator}": value}] * 190}, fields=["id"])


def new_shape(number: int) -> bytes:
    """A read that no cache has, with thousands of parameters."""
    random.seed(number)
    return read("Empty", {"id__in": list(range(9_000 + number % 400)), f"n__{random.choice(['gt', 'lt'])}": number})


def new_conditions(number: int) -> bytes:
    """A read that no cache has, with two hundred conditions."""
    chance = random.Random(number)
    operators = ["eq", "ne", "gt", "gte", "lt", "lte"]
    either = [{f"n__{chance.choice(operators)}": each} for each in range(200)]
    return read("Empty", {"$or": either})


def nested(number: int, depth: int = 25) -> bytes:
    """A filter that is deep, and of a new shape each time."""
    chance = random.Random(number)
    where: Any = {"n": number}
    for _ in range(depth):
        where = {chance.choice(["$or", "$and"]): [where, {"$not": {"n": chance.random()}}]}
    return read("Empty", where)


LISTS = "[" + "[]," * 340_000 + "[]]"
DECIMAL = "0." + "1" * 37


def raw(text: str) -> bytes:
    """A frame of a text."""
    return masked(TEXT, text.encode())


def dear_decimals(number: int = 190, many: int = 740) -> bytes:
    """A message of nearly a megabyte that is mostly numbers to be checked."""
    return read("Prices", {"$or": [{"price": ["1.5"] * many} for _ in range(number)]})


DEAR = (
    dear_decimals(),
    read("Prices", {"price__in": [DECIMAL] * 24_000}),
    raw('{"zKey":"read_Prices","zHorizontal":{"where":{"id":' + LISTS + "}}}"),
    raw('{"zKey":"create_Docs","zHorizontal":{"values":' + LISTS + "}}"),
    raw('{"zKey":"zFunc","zHorizontal":{"name":"quick","args":' + LISTS + "}}"),
    raw('{"zKey":"ping","zHorizontal":[' + ",".join(["9" * 4200] * 240) + "]}"),
    raw('{"zKey":"read_Prices","zHorizontal":{"where":{"id__in":[' + ",".join(["9" * 4200] * 240) + "]}}}"),
    raw('{"zKey":"nobody","zHorizontal":[' + ("[" * 60 + "]" * 60 + ",") * 8_500 + "1]}"),
    raw('{"zKey":"read_Prices","zHorizontal":{"where":{' + ",".join(f'"f{n}":1' for n in range(90_000)) + "}}}"),
    raw('{"zKey":"create_Docs","zHorizontal":{"values":{' + ",".join(f'"f{n}":1' for n in range(90_000)) + "}}}"),
    raw('{"zKey":"zFunc","zHorizontal":"zFunc(quick, {' + ",".join(f"k{n}: 1" for n in range(1_600)) + '})"}'),
    raw('{"zKey":"read_Prices","zHorizontal":{"order_by":[' + ",".join(f'"f{n}"' for n in range(90_000)) + "]}}"),
    raw('{"zKey":"read_Prices","zHorizontal":{"fields":[' + ",".join(f'"f{n}"' for n in range(90_000)) + "]}}"),
    raw('{"zKey":"zDescribe","zHorizontal":[' + ",".join(f'"f{n}"' for n in range(90_000)) + "]}"),
    raw('{"zKey":"' + "é" * 2_000 + '","zHorizontal":"' + "\\u0000" * 170_000 + '"}'),
)
SMALL_DEAR = (
    message("zFunc", "zFunc(quick, " + "[" * 60 + "]" * 60 + ")"),
    message("zFunc", "zFunc(quick, " + "(" * 8_000 + ")"),
    message("zLink", "zLink(/" + "a/" * 250 + ")"),
    message("zOpen", "zOpen(" + "../" * 5_000 + "x)"),
    read("Prices", {"price": "9" * 4_000}),
    read("Prices", {"price": "1e" + "9" * 18}),
    read("Texts", {"made": "9" * 4_000}),
)


def near_miss(number: int) -> bytes:
    """A name that is nearly that of something."""
    each = number % 60
    return (
        message("zFunc", f"zFunc(funtcion_for_reprot_number_{each:02})"),
        message(f"read_ModleNubmer{each}"),
        message("read_Model_of_number_7", {"where": {f"feild_of_teh_model_{each}": 1}}),
        message(f"read_Model_of_number_{each}", {"fields": [f"feild_of_teh_model_{each}"]}),
        message("create_Model_of_number_7", {"values": {f"feild_of_teh_model_{n}": 1 for n in range(20)}}),
        message(f"costum_comand_{number}"),
        message("zLink", f"zLink(/amdin/uesrs{each})"),
        message("zOpen", f"zOpen(confgi{each}.ymal)"),
    )[number % 8]


def json_rows(action: str) -> Callable[[int], bytes]:
    """Writes of a megabyte of JSON."""
    value = [[]] * 330_000

    def make(number: int) -> bytes:
        more = {"conflict_fields": ["code"]} if action == "upsert" else {}
        return message(f"{action}_Docs", {"values": {"code": f"{number % 7}-{number % 3}", "doc": value}, **more})

    return lambda number, made=make: made(number)


def keyed(action: str, number: int) -> bytes:
    """A write that may be repeated, and changes nothing or little."""
    if action == "delete":
        return message("delete_Own", {"where": {"id": -1}, "_idempotencyKey": f"k-{number}"})
    if action == "update":
        return message("update_Own", {"where": {"id": -1}, "values": {"n": 1}, "_idempotencyKey": f"k-{number}"})
    return message("create_Own", {"values": {"n": number % 1000}, "_idempotencyKey": f"k-{number}"})


def compressed(text: str) -> bytes:
    """A message that is small on the wire."""
    squeezer = zlib.compressobj(9, wbits=-15)
    data = squeezer.compress(text.encode()) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    frame = masked(TEXT, data[:-4])
    return bytes((frame[0] | 0x40,)) + frame[1:]


DEAR_FILTER = {"$or": [{"body__ilike": "%a%a%a%a%b" + str(each)} for each in range(18)]}
DEAR_UPDATE = message("update_Own", {"where": DEAR_FILTER, "values": {"n": 1}})
FOLDED_FILTER = {"$or": [{"body__ilike": f"%é{each:03}%"} for each in range(32)]}
FOLDED_UPDATE = message("update_Own", {"where": FOLDED_FILTER, "values": {"n": 1}})
ALL_UPDATE = message("update_Own", {"all": True, "values": {"n": 2}})
MEGABYTE = "x" * (MIB - 300)
#: A fragment without an end.
UNFINISHED = bytes((masked(TEXT, b"")[0] & 0x7F,)) + masked(TEXT, MEGABYTE.encode())[1:]
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
#: A message of 1 MiB that is some 1 KiB as it comes.
SMALL_MEGABYTE = compressed('{"zKey":"ping","zHorizontal":"' + MEGABYTE + '"}')

USER_ATTACKS = {
    # Patterns and filters.
    "patterns": UserAttack(lambda n: cycle(patterns(49_000)), in_flight=5, rows=("text",)),
    "patterns-of-1000": UserAttack(lambda n: cycle(patterns(1_000)), in_flight=5, rows=("text",)),
    "patterns-of-200": UserAttack(lambda n: cycle(patterns(200)), in_flight=5, rows=("text",)),
    "conditions-200": UserAttack(over_and_over(conditions(100)), in_flight=5, rows=("text",)),
    "conditions-32": UserAttack(over_and_over(conditions(7, 32)), in_flight=5, rows=("many",)),
    "folded-conditions": UserAttack(over_and_over(FOLDED), in_flight=5, rows=("many",)),
    "folded-conditions-of-a-text": UserAttack(over_and_over(FOLDED), in_flight=5, rows=("text",)),
    "conditions-of-a-text": UserAttack(lambda n: cycle(LOOKING), in_flight=5, rows=("text",)),
    "comparisons-of-texts": UserAttack(
        over_and_over(unlike("ne", "b"), unlike("eq", "b"), unlike("gt", "b")), 2, 8, rows=("texts",)
    ),
    "folded-updates": UserAttack(over_and_over(FOLDED_UPDATE), 2, 5, rows=("own",)),
    "sorts": UserAttack(
        over_and_over(read("Own", order_by=["body", "n DESC", "id"], limit=1, offset=19_000)), 10, 10, rows=("own",)
    ),
    # Results.
    "json-reads": UserAttack(over_and_over(read("Docs")), in_flight=8, rows=("docs",)),
    "json-reads-one-by-one": UserAttack(over_and_over(read("Docs", limit=1)), 4, 64, rows=("docs",)),
    "text-reads": UserAttack(over_and_over(read("Texts", limit=15)), in_flight=8, rows=("texts",)),
    "wide-reads": UserAttack(over_and_over(read("Wide")), in_flight=8, rows=("wide",)),
    "drip-readers": UserAttack(over_and_over(read("Texts", limit=15)), 40, 2, rate=25_000, rows=("texts",)),
    "results-never-read": UserAttack(over_and_over(read("Texts", limit=15)), 40, 2, rate=0, rows=("texts",)),
    "described-never-read": UserAttack(
        over_and_over(message("zDescribe")), 40, 64, rate=0, stage="many", databases=False, growth=RESULTS
    ),
    # Shapes.
    "new-shapes": UserAttack(made(new_shape), in_flight=8, growth=RESULTS),
    "new-conditions": UserAttack(made(new_conditions), in_flight=8, growth=RESULTS),
    "nested-filters": UserAttack(made(nested), in_flight=8, growth=RESULTS),
    # Writes.
    "large-creates": UserAttack(
        over_and_over(message("create_Texts", {"values": {"body": MEGABYTE}})), 1, 2, pace=5, listeners=50, writes=True
    ),
    "creates-of-60k": UserAttack(
        over_and_over(message("create_Texts", {"values": {"body": "x" * 60_000}})), 2, 8, listeners=50, writes=True
    ),
    "small-creates": UserAttack(made(lambda n: message("create_Own", {"values": {"n": 1}})), listeners=50, writes=True),
    "dear-updates": UserAttack(over_and_over(DEAR_UPDATE), 1, 5, rows=("own",)),
    "mass-updates": UserAttack(over_and_over(ALL_UPDATE), 1, 5, rows=("own",), writes=True),
    "json-creates": UserAttack(made(json_rows("create")), 2, 4, writes=True),
    "json-upserts": UserAttack(made(json_rows("upsert")), 2, 4, writes=True),
    "idempotent-deletes": UserAttack(made(lambda n: keyed("delete", n))),
    "idempotent-updates": UserAttack(made(lambda n: keyed("update", n))),
    "idempotent-creates": UserAttack(made(lambda n: keyed("create", n)), writes=True),
    "conflicts": UserAttack(
        over_and_over(message("create_Docs", {"values": {"code": "taken", "doc": 1}})), rows=("docs",)
    ),
    # Threads.
    "waiting-functions": UserAttack(over_and_over(message("zFunc", "zFunc(wait, 5)")), databases=False, growth=FEW),
    "short-waits": UserAttack(over_and_over(message("zFunc", "zFunc(wait, 0.02)")), 8, databases=False, growth=FEW),
    "questions": UserAttack(
        lambda n: (message("zFunc", "zFunc(question)", _requestId=each) for each in count()), databases=False
    ),
    "many-questions": UserAttack(
        lambda n: (message("zFunc", "zFunc(questions)", _requestId=each) for each in count()), 20, databases=False
    ),
    "steps": UserAttack(
        lambda n: (message("zFunc", "zFunc(steps, 100000)", _requestId=each) for each in count()), databases=False
    ),
    "hosted-functions": UserAttack(
        over_and_over(message("zFunc", "zFunc(wait, 5)")), stage="hosted", databases=False, growth=FEW
    ),
    "failing-commands": UserAttack(over_and_over(message("zFunc", "zFunc(fails)")), databases=False, growth=FEW),
    "failing-in-many-ways": UserAttack(
        made(lambda n: message("zFunc", f"zFunc(fails, {n})")), databases=False, growth=FEW
    ),
    "endless-carts": UserAttack(
        over_and_over(message("zFunc", 'zFunc(calculateTotal, {items: [{price: "A", count: 2000000000}]})')),
        databases=False,
        growth=FEW,
    ),
    # The reactor.
    "dear-messages": UserAttack(over_and_over(*DEAR), 1, databases=False, growth=RESULTS),
    "dear-messages-10": UserAttack(over_and_over(*DEAR), 10, databases=False, growth=RESULTS),
    "dear-decimals": UserAttack(over_and_over(DEAR[0]), 1, databases=False, growth=RESULTS),
    "small-dear-messages": UserAttack(over_and_over(*SMALL_DEAR), 4, databases=False, growth=FEW),
    "near-misses": UserAttack(made(near_miss), 1, pace=3_000, stage="many", databases=False, growth=FEW),
    "near-misses-4": UserAttack(made(near_miss), 4, stage="many", databases=False, growth=FEW),
    "descriptions": UserAttack(over_and_over(message("zDescribe")), 4, stage="many", databases=False),
    "large-echoes": UserAttack(
        over_and_over(message("ping", MEGABYTE)), 4, 64, rate=0, databases=False, growth=RESULTS
    ),
    "large-echoes-read": UserAttack(over_and_over(message("ping", MEGABYTE)), 4, 64, databases=False),
    "news": UserAttack(
        over_and_over(message("zFunc", {"name": "news", "args": ["x" * 60_000]})), 2, 8, listeners=50, databases=False
    ),
    "compressed-messages": UserAttack(
        over_and_over(
            compressed('{"zKey":"ping","zHorizontal":"' + MEGABYTE + '"}'),
            compressed('{"zKey":"zFunc","zHorizontal":{"name":"quick","args":' + LISTS + "}}"),
            compressed('{"zKey":"read_Prices","zHorizontal":{"where":{"price__in":[' + '"1.5",' * 170_000 + '"1"]}}}'),
        ),
        4,
        16,
        options=("--compression",),
        headers=(DEFLATE,),
        databases=False,
    ),
    # Everything is told.
    "told-reads": UserAttack(
        over_and_over(read("Texts", limit=15)),
        2,
        4,
        rows=("texts",),
        options=("--broadcast", "all"),
        listeners=10,
    ),
    "told-files": UserAttack(
        over_and_over(message("zOpen", "zOpen(large.txt)")),
        4,
        options=("--broadcast", "all"),
        listeners=10,
        databases=False,
    ),
    "told-echoes": UserAttack(
        over_and_over(message("ping", "x" * 60_000)), 2, options=("--broadcast", "all"), listeners=20, databases=False
    ),
    # Files and connections.
    "large-files": UserAttack(over_and_over(message("zOpen", "zOpen(large.txt)")), 4, databases=False),
    "binary-files": UserAttack(over_and_over(message("zOpen", "zOpen(large.bin)")), 4, databases=False),
    "unfinished-messages": UserAttack(over_and_over(UNFINISHED), 600, 1, databases=False),
    "tiny-messages-unread": UserAttack(over_and_over(masked(TEXT, b"{}") * 1000), 450, rate=0, databases=False),
    "large-messages-unread": UserAttack(
        over_and_over(masked(TEXT, b"{}") * 200 + SMALL_MEGABYTE),
        450,
        rate=0,
        options=("--compression",),
        headers=(DEFLATE,),
        databases=False,
    ),
    "large-messages-of-many": UserAttack(
        over_and_over(masked(TEXT, b"{}") * 30 + SMALL_MEGABYTE),
        450,
        options=("--compression",),
        headers=(DEFLATE,),
        databases=False,
    ),
    "many-in-flight": UserAttack(
        lambda n: (message("zFunc", "zFunc(questions)", _requestId=each) for each in count()), 200, databases=False
    ),
    "searches-of-many": UserAttack(
        over_and_over(message("read_Own", {"where": {"body__contains": "zz"}, "limit": 1})), 200, rows=("own",)
    ),
    "connections-768": UserAttack(lambda n: iter(()), 768, databases=False, growth=RESULTS),
}
