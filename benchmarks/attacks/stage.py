"""A server as an operator runs it, with users, rights, tables and functions; and the databases behind it."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from soak import ROOT, Server

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.postgres import Cluster, binaries, cluster_directory  # noqa: E402 (after the path)

from attacks.functions import NAMES  # noqa: E402 (after the path)
from zcomm.auth.tokens import TokenStore  # noqa: E402 (after the path)

USERS = ("attacker", "other", "listener", *(f"author{number}" for number in range(8)))

SCHEMA = """
Notes:
  id:    {type: int, pk: true}
  title: {type: str, required: true}
Texts:
  id:    {type: int, pk: true}
  body:  str
  made:  {type: datetime, default: now}
Docs:
  id:    {type: int, pk: true}
  code:  {type: str, unique: true}
  doc:   json
Own:
  id:    {type: int, pk: true}
  owner: {type: str, index: true}
  n:     int
  body:  str
Prices:
  id:    {type: int, pk: true}
  price: decimal
Empty:
  id:    {type: int, pk: true}
  n:     int
Wide:
  id:    {type: int, pk: true}
""" + "".join(f"  c{number}: int\n" for number in range(40))
MANY = "".join(
    f"Model_of_number_{model}:\n  id: {{type: int, pk: true}}\n"
    + "".join(f"  field_of_the_model_{field}: int\n" for field in range(60))
    for model in range(60)
)
POLICY = """
attacker:
  models:
    Texts: [create, read]
    Docs: [create, read, update]
    Own: {actions: [create, read, update, delete], rows: {owner: $name}}
    Prices: [read]
    Empty: [read]
    Wide: [read]
    MANY
  functions: [quick, wait, question, questions, steps, news, fails, calculateTotal, FUNCTIONS]
  pages: ["*"]
  files: ["*"]
other:
  models:
    Notes: [create, read]
  functions: [quick]
listener:
  models:
    Texts: [read]
    Docs: [read]
  functions: [news]
  files: ["*"]
author: {}
"""

KIB, MIB = 1024, 1024 * 1024
JSON = "[" + "[]," * (MIB // 3 - 100) + "[]]"
#: What may be in the tables, by name: the table, and each row of it.
ROWS: dict[str, tuple[str, Callable[[], Iterator[dict[str, Any]]]]] = {
    "text": ("Texts", lambda: iter([{"body": "a" * 1_000_000}])),
    "many": ("Texts", lambda: ({"body": "a" * 2_000} for _ in range(5_000))),
    "texts": ("Texts", lambda: ({"body": "x" * MIB} for _ in range(16))),
    "docs": ("Docs", lambda: ({"code": f"d{number}" if number else "taken", "doc": JSON} for number in range(15))),
    "own": ("Own", lambda: ({"owner": "attacker", "n": number, "body": "a" * 500} for number in range(20_000))),
    "wide": ("Wide", lambda: ({f"c{field}": field * 1000 for field in range(40)} for _ in range(10_000))),
}


class Stage:
    """A server that runs, with its users.

    :param attack: what is to be done to it.
    :param url: of an empty database; ``""`` for a file of its own.
    :param core: which it is kept on.
    :ivar tokens: by user.
    :ivar server: the process.
    :ivar url: of its database.
    """

    def __init__(self, home: Path, attack: Any, url: str, core: int | None = 0):
        data = home / "data"
        data.mkdir(mode=0o700)
        hosted = getattr(attack, "stage", "usual") == "hosted"
        many = getattr(attack, "stage", "usual") == "many"
        if hosted:
            self.tokens = {name: f"{name}-secret" for name in USERS}
        else:
            store = TokenStore(data / "tokens.json")
            self.tokens = {name: store.add(name, name.rstrip("0123456789")).token for name in USERS}
        (home / "schema.yaml").write_text(SCHEMA + (MANY if many else ""))
        models = "".join(f"Model_of_number_{number}: [create, read]\n    " for number in range(60))
        (home / "policy.yaml").write_text(
            POLICY.replace("MANY", models if many else "").replace("FUNCTIONS", ", ".join(NAMES))
        )
        files = home / "files"
        files.mkdir()
        (files / "large.txt").write_text("x" * MIB)
        (files / "large.bin").write_bytes(secrets.token_bytes(MIB))
        self.url = url or f"sqlite:///{data / 'zcomm.sqlite3'}"
        self.home = home
        program = [sys.executable, str(ROOT / "benchmarks" / "attacks" / "hosted.py")] if hosted else None
        self.server = Server(
            home,
            *("--database", self.url),
            *("--schema", str(home / "schema.yaml"), "--policy", str(home / "policy.yaml")),
            *("--functions", "benchmarks.attacks.functions", "--files", str(files)),
            *attack.options,
            program=program,
            core=core,
        )
        try:
            self.server.wait_for(b"] ready")
            self.fill(getattr(attack, "rows", ()))
        except BaseException:
            self.server.process.kill()
            raise

    def fill(self, names: tuple[str, ...]) -> None:
        """Put rows into the tables, and a note that is read by its id."""
        engine = sa.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        json_value = "CAST(:doc AS jsonb)" if engine.dialect.name == "postgresql" else ":doc"
        with engine.begin() as connection:
            connection.execute(sa.text("INSERT INTO \"Notes\" (title) VALUES ('the first')"))
            for table, make in (ROWS[name] for name in names):
                rows = list(make())
                columns = ", ".join(rows[0])
                values = ", ".join(json_value if column == "doc" else f":{column}" for column in rows[0])
                connection.execute(sa.text(f'INSERT INTO "{table}" ({columns}) VALUES ({values})'), rows)
        engine.dispose()

    def disk(self) -> int:
        """Bytes of its database."""
        if self.url.startswith("sqlite"):
            return sum(path.stat().st_size for path in (self.home / "data").glob("zcomm.sqlite3*"))
        return self.asked("SELECT pg_database_size(current_database())")

    def left(self) -> int:
        """Statements that have been running for long, in a PostgreSQL."""
        if self.url.startswith("sqlite"):
            return 0
        return self.asked(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND now() - query_start > interval '3 s'"
        )

    def asked(self, sql: str) -> int:
        """One number, as another program of this PostgreSQL gets it."""
        engine = sa.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
        with engine.connect() as connection:
            return int(connection.execute(sa.text(sql)).scalar_one())

    def log_size(self) -> tuple[int, int]:
        """Lines and bytes of its log."""
        text = self.server.output.read_bytes()
        return text.count(b"\n"), len(text)


@contextmanager
def databases(
    wanted: set[str], favour: Callable[[int], AbstractContextManager[None]]
) -> Iterator[dict[str, Callable[[], AbstractContextManager[str]]]]:
    """By kind, what gives the URL of an empty database for a while; ``""`` is a file of the server's own.

    Each of PostgreSQL's is in a cluster of its own: what an attack leaves running there disturbs no other.
    """
    found: dict[str, Callable[[], AbstractContextManager[str]]] = {"sqlite": lambda: nullcontext("")}
    if "postgresql" not in wanted or binaries() is None:
        yield found
        return
    with cluster_directory() as (template, programs):
        Cluster(template, programs)

        @contextmanager
        def running() -> Iterator[str]:
            with cluster_directory() as (directory, _):
                cluster = Cluster(directory, programs, template)
                cluster.start("max_connections=30")
                try:
                    with favour(cluster.pid):
                        yield cluster.url(cluster.new_database())
                finally:
                    cluster.stop(signal.SIGQUIT)

        found["postgresql"] = running
        yield found
