"""Random worlds: what clients have of their live queries is what a read answers, whatever was written by whom."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from live.differ.databases import Database
from live.differ.models import MARKS, USERS, Model, models_of, policy_of, schema_of
from live.differ.queries import query_of
from live.differ.watcher import Broken, Lost, Query, Watcher, hear_all
from live.differ.writes import Failed, Foreign, request, statements
from support.serverprocess import RunningServer, start_server

from zcomm.auth.tokens import TokenStore

__all__ = ["Difference", "World"]

#: Seconds within which clients are told of what was written.
PATIENCE = 30.0
#: The server's words of a query that takes long.
BEHIND = ("it is read beside the steps", "are behind the others until the next step")
#: Codes with which a command that may be sent again is answered.
FOR_NOW = ("too_busy", "timeout", "unavailable")
#: Whether who asks for rows of which only the server's own writes are seen has those of now, also where others ask the
#: same. Where not, such models are left out once another program has written to them.
OWN_READS_ANEW = True
#: Whether rights change while queries run.
CHANGES_RIGHTS = True
#: In the error of a query that a read would answer, and that cannot be kept.
NOT_KEPT = "cannot be asked for live"
#: In the error of one that has more rows than one may have.
TOO_MANY = "More than 1000 rows match"
#: In that of one whose rows are too large together. A read may have more.
TOO_LARGE = "Its rows come to more than 4 MiB"


class Difference(AssertionError):
    """A client has other rows than a read."""


class World:
    """A server, its database, models, users and their queries, all by lot.

    :ivar counts: what was done, for who reads the output.
    """

    def __init__(self, seed: int, database: Database, counts: Counter[str]):
        self.seed, self.counts = seed, counts
        self.dice = Random(f"world {seed}")
        self.database = database
        self.models = models_of(self.dice, database.is_special, database.is_sqlite)
        self.by_name = {model.name: model for model in self.models}
        self.directory = Path(tempfile.mkdtemp(prefix="zlive"))
        self.has_had_many = False
        self.step = self.mark = self.number = self.changes_of_rights = 0
        self.log: deque[str] = deque(maxlen=20)
        self.watchers: list[Watcher] = []
        self.held: list[tuple[int, Foreign, set[str], int]] = []
        self.foreign: list[Foreign] = []
        #: A copy of the file of SQLite.
        self.copy: Any = None
        #: Models to which other programs have written in this life of the server.
        self.missed: set[str] = set()
        #: By model, order and rows their digest.
        self.digests: dict[tuple[str, str, tuple[bytes, ...]], str] = {}
        self.server: RunningServer | None = None
        #: Another one on the same database, now and then: to each what the other writes is what another program writes.
        self.second: RunningServer | None = None

    # -- its life

    def __enter__(self) -> World:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self.watchers, *self.foreign, *(held[1] for held in self.held)):
            each.close()
        for server in filter(None, (self.server, self.second)):
            server.kill()
        self.database.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _begin(self) -> None:
        self.database.prepare(self.dice, self.directory, self.models)
        (self.directory / "schema.yaml").write_text(schema_of(self.models))
        self.policy = self.directory / "policy.yaml"
        self.policy.write_text(policy_of(self.models, self.dice))
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        store = TokenStore(data / "tokens.json")
        self.tokens = {user: store.add(user, role).token for user, role in USERS.items()}
        self.server = self._start("data")
        self.root = Watcher("root", self.reach)
        self.writers = {user: Watcher(user, self.reach) for user in USERS}
        self.watchers = [self.root, *self.writers.values()]
        if self.database.url != "sqlite://" and (self.dice.random() < 0.2 or self.database.is_shared):
            shutil.copytree(data, self.directory / "data2")
            self.second = self._start("data2")
            self.writers["root "] = self.root_of_second = Watcher("root", self.reach_second)
            self.watchers.append(self.root_of_second)
            self.counts["worlds of two servers"] += 1
        for each in self.watchers:
            each.connect()
        self._write_mark(by_zcomm=True)
        for model in self.models:
            for _ in range(self.dice.choice([5, 20, 40])):
                self.root.call(*request(self.dice, model, self._keys, "create"))
        self.foreign = [each for each in (self.database.connect(self.dice) for _ in range(3)) if each]
        self.clients = [
            Watcher(user, self.reach if self.second is None or self.dice.random() < 0.5 else self.reach_second)
            for user in self.dice.sample(list(USERS), self.dice.randrange(2, 5))
        ]
        self.watchers += self.clients
        for each in self.clients:
            self._join(each)

    def reach(self, user: str) -> tuple[int, str]:
        """The port of the server and the token of a user."""
        if self.server is None:
            raise Lost
        return self.server.port, self.tokens[user]

    def reach_second(self, user: str) -> tuple[int, str]:
        """Likewise, of the second server."""
        if self.second is None:
            raise Lost
        return self.second.port, self.tokens[user]

    def _start(self, data: str) -> RunningServer:
        self.missed.clear()
        return start_server(
            *("--schema", str(self.directory / "schema.yaml"), "--policy", str(self.policy)),
            *("--database", self.database.url, "--data-dir", str(self.directory / data)),
            *("--broadcast", "none", "--ping-interval", "3600", "--stall-timeout", "3600"),
            *("--database-time", "1000"),
            home=self.directory / "home",
        )

    # -- queries

    def _join(self, client: Watcher) -> None:
        """Connect, and ask for what it has had before, or for something."""
        client.connect(small=self.dice.random() < 0.3)
        had = list(client.queries.values())
        for query in had:
            if query.name != "mark" and not query.code:
                self._resume(client, query)
        self._ask(client, Query("mark", MARKS, {"where": {"id": 1}}))
        if not had:
            for _ in range(self.dice.randrange(2, 7)):
                self._new_query(client)

    def _ask(self, client: Watcher, query: Query, knows: bool = False) -> str:
        """Ask for a live query, until the answer is no other for now."""
        deadline = time.monotonic() + PATIENCE
        while True:
            told = client.live(query, knows)
            if told not in FOR_NOW:
                break
            self.counts[f"zLive {told}"] += 1
            if time.monotonic() > deadline:
                raise self._failure(client, query, f"zLive is {told}: {query.error}")
            time_passes(0.05)
        if query.name == "mark" and told not in ("rows", "same"):
            raise self._failure(client, query, f"zLive of the mark is {told}: {query.error}")
        return told

    def _new_query(self, client: Watcher) -> None:
        self.number += 1
        model = self.dice.choice(self.models)
        query = Query(f"q{self.number}", model.name, query_of(self.dice, model))
        others = [name for name in client.queries if name != "mark"]
        if len(others) > 6 or (others and self.dice.random() < 0.2):
            # The same name again is another query.
            query.name = self.dice.choice(others)
        elif others and self.dice.random() < 0.1:
            client.unsubscribe(self.dice.choice(others))
        told = self._ask(client, query)
        self.counts[f"query {told}"] += 1
        if told == "rows" and model.live:
            self.counts[f"live sees {query.sees}"] += 1
        if told not in ("rows", "same"):
            self._refused(client, query)

    def _hurry(self, client: Watcher) -> None:
        """Ask for one thing after the other under one name, without a look at the replies."""
        others = [name for name in client.queries if name != "mark"]
        self.number += 1
        name = self.dice.choice(others) if others else f"q{self.number}"
        queries: list[Query | None] = []
        for _ in range(self.dice.randrange(2, 6)):
            model = self.dice.choice(self.models)
            queries.append(None if self.dice.random() < 0.3 else Query(name, model.name, query_of(self.dice, model)))
        client.hurry(queries, name)
        self.counts["hurried"] += 1

    def _refused(self, client: Watcher, query: Query) -> None:
        """What is refused as a live query is refused as a read, by the same code."""
        read = self._read(client, query)
        if NOT_KEPT in query.error:
            self.counts["query not kept"] += 1
        elif not _has_too_many(query, read) and read != query.code:
            raise self._failure(client, query, f"zLive is {query.code} ({query.error}), a read {str(read)[:300]}")

    def _resume(self, client: Watcher, query: Query) -> None:
        """Ask again with what it has: that is the same if and only if nothing differs."""
        before = query.rows if query.digest else None
        told = self._ask(client, query, knows=True)
        self.counts[f"resumed {told}"] += 1
        if told not in ("rows", "same"):
            self._refused(client, query)
        elif told == "rows" and query.rows == before and query.shows_order:
            raise self._failure(client, query, "nothing differs, and rows were sent again")

    def _read(self, client: Watcher, query: Query) -> list[bytes] | str:
        """What a read answers the same user, its ties broken by the key."""
        asked = dict(query.asked)
        key = [each.name for each in self.by_name[query.model].key] if query.model != MARKS else ["id"]
        order = asked.get("order_by", [])
        terms = order if isinstance(order, list) else [term for term in order.split(",") if term.strip()]
        named = [term.split()[0] for term in terms]
        asked["order_by"] = [*terms, *(name for name in key if name not in named)]
        if "fields" in asked:
            asked["fields"] = [*(name for name in key if name not in asked["fields"]), *asked["fields"]]
        for _ in range(200):
            read = client.read(query.model, asked)
            if read not in FOR_NOW:
                return read
            time_passes(0.05)
        return read

    # -- comparing

    def settle(self) -> None:
        """Wait until all that was written has come to all who read."""
        for client in self.clients:
            if not client.is_connected:
                self._join(client)
        marks = [query for client in self.clients if not client.is_slow for query in client.queries.values()]
        marks = [query for query in marks if query.name == "mark"]
        is_seen = bool(self.foreign) and all(query.sees == "all" for query in marks)
        self._write_mark(by_zcomm=not is_seen or self.dice.random() < 0.5)
        deadline = time.monotonic() + PATIENCE
        while True:
            behind = [client for client in self.clients if not client.is_slow and not self._has_mark(client)]
            if not behind:
                return
            if time.monotonic() > deadline:
                query = behind[0].queries["mark"]
                raise self._failure(behind[0], query, f"the mark {self.mark} does not come: {query.rows} {query.error}")
            try:
                hear_all(behind, 0.5)
            except Lost:
                self.counts["connections lost"] += 1
                for client in self.clients:
                    if not client.is_connected:
                        self.log.append(f"{client.user} has lost its connection: {client.told[-1:]}")
                        self._join(client)

    def _has_mark(self, client: Watcher) -> bool:
        rows = client.queries["mark"].rows
        return bool(rows) and json.loads(rows[0])["n"] == self.mark

    def _write_mark(self, by_zcomm: bool) -> None:
        self.mark += 1
        if not by_zcomm:
            sql = f'INSERT INTO "{MARKS}" (id, n) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET n = excluded.n'
            try:
                self._fresh(0).run(sql, [self.mark])
                return
            except Failed as error:
                self.log.append(f"the mark: {error}")
        for _ in range(400):
            if self.mark == 1:
                answer = self.root.call(f"create_{MARKS}", {"values": {"n": self.mark}})
            else:
                answer = self.root.call(f"update_{MARKS}", {"where": {"id": 1}, "values": {"n": self.mark}})
            if "result" in answer and answer["result"] != {"updated": 0}:
                if self.second is not None:
                    # Who sees its own writes alone sees that one.
                    self.root_of_second.call(f"update_{MARKS}", {"where": {"id": 1}, "values": {"n": self.mark}})
                return
            time_passes(0.05)
        raise AssertionError(f"the mark cannot be written: {answer}\n{self._tail()}")

    def compare(self) -> None:
        """Every query has what a read answers."""
        wrong: list[tuple[int, str]] = []
        for client in self.clients:
            if client.is_slow:
                continue
            for query in list(client.queries.values()):
                reason = self._compare(client, query)
                if reason:
                    told = str(self._failure(client, query, reason))
                    wrong.append((len(json.dumps(query.asked)) + len(reason), told))
        if not any(client.is_slow for client in self.clients):
            self.changes_of_rights = 0
        if wrong:
            wrong.sort()
            raise Difference(f"{len(wrong)} queries differ; the smallest:\n{wrong[0][1]}")

    def _compare(self, client: Watcher, query: Query) -> str:
        read = self._read(client, query)
        if query.code:
            del client.queries[query.name]
            self.counts[f"ended {query.code}"] += 1
            if self.changes_of_rights > 1 and query.code in ("permission_denied", "unknown_field"):
                # It was so in between.
                return ""
            # Those that were too many may be gone again.
            is_many = TOO_MANY in query.error or TOO_LARGE in query.error
            is_right = read == query.code or (is_many and self.has_had_many)
            return "" if is_right else f"it has ended with {query.code} ({query.error}), a read is {str(read)[:500]}"
        if isinstance(read, str):
            return f"it lives, and a read is {read}"
        if self._misses(query):
            self.counts["not seen"] += 1
            return ""
        self.counts["compared"] += 1
        self.counts["rows compared"] += len(read)
        if read != query.rows:
            return "\n".join(["it has other rows than a read:", *_difference(read, query.rows)])
        known = self.digests.setdefault((query.model, str(query.asked.get("order_by")), tuple(read)), query.digest)
        if known != query.digest and query.shows_order:
            return f"rows that are alike have the digests {known} and {query.digest}"
        return ""

    def _misses(self, query: Query) -> bool:
        """Whether another program has written what the server does not see."""
        return query.sees == "own" and (query.misses if OWN_READS_ANEW else query.model in self.missed)

    def _failure(self, client: Watcher, query: Query, reason: str) -> Difference:
        model = self.by_name.get(query.model)
        fields = (
            []
            if model is None
            else [
                f"{each.name}: {each.kind} {each.column}"
                + "".join(f" {word}" for word in ("pk", "unique", "hidden", "is_made") if getattr(each, word))
                + (f" -> {'.'.join(each.fk)} on delete {each.on_delete} {each.on_update}" if each.fk else "")
                for each in model.fields
            ]
        )
        return Difference(
            "\n".join(
                [
                    reason,
                    f"again: ZCOMM_TEST_SEED={self.seed} (step {self.step})",
                    f"user {client.user} ({USERS[client.user]}), query {query.name} of {query.model}"
                    f" ({'live' if model is None or model.live else 'not live'}, sees {query.sees}),"
                    f" {query.changes} changes, {query.resets} resets: {json.dumps(query.asked, ensure_ascii=False)}",
                    f"{query.model}: {'; '.join(fields)}",
                    "the last writes:",
                    *(f"  {line[:600]}" for line in self.log),
                    "the last messages about it:",
                    *(
                        f"  {line[:1500]}"
                        for line in client.told
                        if f'"{query.name}"' in line or line.startswith(("closed", "connected"))
                    ),
                    "the last steps told:",
                    *(f"  {line[:120]}" for line in client.told[-10:]),
                    self._tail(),
                ]
            )
        )

    def _tail(self) -> str:
        if self.server is None:
            return ""
        _, _, told = self.server.log.partition("] ready\n")
        return "\n".join(
            ["the server's log:", *(f"  {line}" for line in told.splitlines()[-12:] if "may not" not in line)]
        )

    # -- writing

    def _note(self, who: str, what: str, result: Any) -> None:
        self.has_had_many |= "WITH RECURSIVE s" in what
        self.log.append(f"{self.step} {who}: {what} -> {result}")

    def _keys(self, name: str) -> list[tuple[Any, ...]]:
        """Those of all rows of a model, as JSON."""
        found = self.root.call(f"read_{name}", {"fields": [each.name for each in self.by_name[name].key]})
        rows = found.get("result", [])
        rows.sort(key=json.dumps)
        return [tuple(row.values()) for row in rows]

    def _by_zcomm(self, models: list[Model]) -> None:
        model = self.dice.choice(models)
        user = self.dice.choice(["root", "root", "root", *self.writers])
        key, horizontal = request(self.dice, model, self._keys)
        writer = self.writers[user]
        answer = writer.call(key, horizontal)
        self.counts[f"zcomm {answer.get('code', 'done')}"] += 1
        if self.second is not None:
            self._missed(model)
        told = answer.get("error") or answer.get("result")
        self._note(f"zcomm {user}", f"{key} {json.dumps(horizontal, ensure_ascii=False)}", f"{told!r:.150}")
        if answer.get("code") == "internal":
            raise AssertionError(f"{self._tail()}\n{self.log[-1]}")

    def _fresh(self, number: int) -> Foreign:
        """A connection of another program that is there."""
        try:
            self.foreign[number].run("SELECT 1")
        except Failed:
            self.foreign[number].close()
            made = self.database.connect(self.dice)
            if made is None:
                raise AssertionError("no other program reaches it") from None
            self.foreign[number] = made
        return self.foreign[number]

    def _statement(self, foreign: Foreign, who: str, models: list[Model], dice: Random) -> bool:
        """A random statement; whether it was done."""
        model = dice.choice(models)
        try:
            for sql, parameters in statements(dice, model, foreign):
                result: Any = ""
                try:
                    foreign.run(sql, parameters)
                except Failed as error:
                    result = error
                    raise
                finally:
                    self._note(who, f"{sql} {parameters}", result)
        except Failed:
            self.counts["foreign refused"] += 1
            # Some of it may have been done: INSERT OR FAIL.
            self._missed(model)
            return False
        self.counts["foreign done"] += 1
        self._missed(model)
        return True

    def _missed(self, model: Model) -> None:
        """Others have written to ``model``, and to what depends on it."""
        touched = self._below(model)
        self.missed |= touched
        for client in self.clients:
            for query in client.queries.values():
                query.misses |= query.model in touched

    def _below(self, model: Model) -> set[str]:
        found, waiting = set(), [model.name]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self.by_name[name].children
        return found

    def _near(self, names: set[str]) -> set[str]:
        """Models that foreign keys join with these."""
        found = set(names)
        while True:
            more = {each.name for each in self.models if {each.name, *each.children} & found}
            more |= {child for each in self.models if each.name in found for child in each.children}
            if more <= found:
                return found
            found |= more

    def _transaction(self, number: int, models: list[Model], dice: Random, how: str) -> None:
        """Several statements of one connection."""
        foreign, who = self._fresh(number), f"foreign {number} {how}"
        if how == "alone":
            for _ in range(dice.randrange(1, 4)):
                self._statement(foreign, who, models, dice)
            return
        try:
            foreign.run("BEGIN IMMEDIATE" if foreign.is_sqlite else "BEGIN")
            self._body(foreign, who, models, dice)
            end = "ROLLBACK" if how == "rollback" else "COMMIT"
            foreign.run(end)
            self._note(who, end, "")
        except Failed as error:
            self._note(who, "ends", error)
            self._roll_back(foreign)

    def _body(self, foreign: Foreign, who: str, models: list[Model], dice: Random) -> None:
        for at in range(dice.randrange(1, 5)):
            savepoint = dice.random() < 0.6
            if savepoint:
                foreign.run(f"SAVEPOINT s{at}")
            done = self._statement(foreign, who, models, dice)
            if savepoint and (not done or dice.random() < 0.3):
                foreign.run(f"ROLLBACK TO SAVEPOINT s{at}")
                self._note(who, "ROLLBACK TO SAVEPOINT", "")
            elif savepoint and dice.random() < 0.5:
                foreign.run(f"RELEASE SAVEPOINT s{at}")
            elif not done and not foreign.is_sqlite:
                raise Failed("a transaction that cannot go on")

    def _roll_back(self, foreign: Foreign) -> None:
        try:
            foreign.run("ROLLBACK")
        except Failed:
            pass

    def _interleaved(self, models: list[Model]) -> None:
        """Transactions of several connections, statement by statement in turn."""
        open_ = []
        for number in range(len(self.foreign)):
            foreign = self._fresh(number)
            try:
                foreign.run(f"BEGIN ISOLATION LEVEL {self.dice.choice(['READ COMMITTED', 'REPEATABLE READ'])}")
            except Failed:
                continue
            open_.append((number, foreign))
        for _ in range(self.dice.randrange(3, 9)):
            if not open_:
                break
            number, foreign = self.dice.choice(open_)
            who = f"foreign {number} beside others"
            try:
                foreign.run("SAVEPOINT s")
                if not self._statement(foreign, who, models, self.dice):
                    foreign.run("ROLLBACK TO SAVEPOINT s")
                if self.dice.random() < 0.2:
                    foreign.run("COMMIT")
                    self._note(who, "COMMIT", "")
                    open_.remove((number, foreign))
            except Failed:
                self._roll_back(foreign)
                open_.remove((number, foreign))
        self.dice.shuffle(open_)
        for number, foreign in open_:
            end = self.dice.choice(["COMMIT", "COMMIT", "ROLLBACK"])
            self._note(f"foreign {number} beside others", end, "")
            try:
                foreign.run(end)
            except Failed:
                self._roll_back(foreign)

    def _storm(self, models: list[Model]) -> None:
        """Several programs at once, and zComm among them; what comes of it only the database knows."""
        self.log.append(f"{self.step} several at once")
        beside = []
        for number in range(len(self.foreign)):
            self._fresh(number)
            dice = Random(f"{self.seed} {self.step} {number}")

            def work(number: int = number, dice: Random = dice) -> None:
                for _ in range(6):
                    how = dice.choice(["alone", "alone", "commit", "rollback"])
                    self._transaction(number, models, dice, how)

            beside.append(threading.Thread(target=work))
        for thread in beside:
            thread.start()
        try:
            for _ in range(5):
                self._by_zcomm(models)
        finally:
            for thread in beside:
                thread.join()

    def _hold(self) -> None:
        """A transaction that stays open while others go on, and ends later."""
        foreign = self.database.connect(self.dice)
        if foreign is None:
            return
        model = self.dice.choice(self.models)
        until = self.step + self.dice.randrange(2, 8)
        foreign.run("BEGIN")
        done = False
        for _ in range(self.dice.randrange(1, 4)):
            foreign.run("SAVEPOINT s")
            try:
                sql, parameters = next(iter(statements(self.dice, model, foreign)), ("", []))
            except Failed:
                foreign.run("ROLLBACK TO SAVEPOINT s")
                continue
            if not sql or sql.startswith(("TRUNCATE", "DO", "ALTER", "LOCK", "VACUUM")):
                # It would keep readers waiting until it ends; or nobody knows what it does.
                continue
            try:
                foreign.run(sql, parameters)
                done = True
                self._note("foreign long", f"{sql} {parameters}", "")
            except Failed:
                foreign.run("ROLLBACK TO SAVEPOINT s")
        if not done:
            foreign.close()
            return
        self.held.append((until, foreign, {model.name}, self.step))

    def _end_held(self, all_of_them: bool = False) -> None:
        for each in list(self.held):
            until, foreign, names, begun = each
            if all_of_them or self.step >= until:
                self.held.remove(each)
                end = self.dice.choice(["COMMIT", "COMMIT", "ROLLBACK"])
                try:
                    foreign.run(end)
                    self._note("foreign long", f"{end} of what began in {begun}", "")
                    for name in names:
                        self._missed(self.by_name[name])
                except Failed as error:
                    self._note("foreign long", "has failed", error)
                foreign.close()

    def _write(self) -> None:
        models = [
            each for each in self.models if each.name not in self._near({n for held in self.held for n in held[2]})
        ]
        how = self.dice.choice(["zcomm"] * 5 + ["alone"] * 5 + ["commit"] * 3 + ["rollback", "beside", "storm", "hold"])
        if how == "hold" and not self.held and self.foreign and not self.database.is_sqlite:
            self._hold()
            return
        if not self.foreign or how in ("zcomm", "hold"):
            if models:
                self._by_zcomm(models)
        elif not models:
            self._end_held(all_of_them=True)
        elif how == "beside" and not self.database.is_sqlite:
            self._interleaved(models)
        elif how == "storm":
            self._storm(models)
        else:
            self._by_others("alone" if how == "beside" else how)

    def _by_others(self, how: str = "alone") -> None:
        """By one other program; where a transaction of another one holds what it wants it gives up."""
        self._transaction(self.dice.randrange(len(self.foreign)), self.models, self.dice, how)

    def _vandalize(self) -> None:
        """Have what the server has made in the database for its log taken away, by somebody who cleans up."""
        if not self.foreign:
            return
        foreign = self._fresh(0)
        try:
            if self.database.is_sqlite:
                made = foreign.run(
                    "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'trigger') "
                    "AND (name LIKE 'zcomm_live%' OR name = 'zcomm_changes')"
                )
                what = [f'DROP {kind} "{name}"' for kind, name in self.dice.sample(made, len(made))]
                what = what[: self.dice.choice([1, len(made)])]
            else:
                what = [self.dice.choice(["DROP SCHEMA zcomm CASCADE", "TRUNCATE zcomm.changes"])]
            for sql in what:
                foreign.run(sql)
                self._note("foreign 0", sql, "")
            self.counts["vandals"] += 1
        except Failed as error:
            self._note("foreign 0", str(what), error)

    def _restore(self) -> None:
        """Put what a file of SQLite has had before in its place, with SQLite's own means."""
        if not self.foreign or not self.database.is_sqlite:
            return
        foreign: Any = self._fresh(0)
        try:
            if self.copy is None:
                self.copy = foreign.backup()
                self._note("foreign 0", "a copy is made", "")
            else:
                foreign.backup(self.copy)
                self._note("foreign 0", "the copy is put in its place", "")
                self.copy = None
                self.counts["restores"] += 1
                for model in self.models:
                    self._missed(model)
                # The mark of now is not in it.
                self.mark += 1
        except Failed as error:
            self._note("foreign 0", "a copy", error)

    def _bound(self) -> None:
        """Tables that have grown are emptied."""
        for model in self.models:
            found = self.root.call(f"read_{model.name}", {"fields": [each.name for each in model.key]})
            if len(found.get("result", ())) > 80 and not self.held:
                answer = self.root.call(f"delete_{model.name}", {"all": True})
                self.log.append(f"{self.step} zcomm root: delete all of {model.name} -> {answer}")
                if self.second is not None:
                    self._missed(model)

    # -- what else happens

    def _restart_server(self) -> None:
        if self.server is None or self.database.url == "sqlite://":
            return
        crash = self.dice.random() < 0.4
        self.log.append(f"{self.step} the server {'is killed' if crash else 'stops'} and starts")
        self.counts["restarts of the server"] += 1
        self.server.kill() if crash else self.server.stop()
        for each in self.watchers:
            each.close()
        if self.foreign and self.dice.random() < 0.7:
            self._by_others()
        self.server = self._start("data")
        for each in self.watchers[: len(self.watchers) - len(self.clients)]:
            each.connect()
        for client in self.clients:
            self._join(client)

    def _restart_database(self) -> None:
        for held in self.held:
            held[1].close()
        self.held.clear()
        if self.database.restart(self.dice):
            self.log.append(f"{self.step} the database stops and starts")
            self.counts["restarts of the database"] += 1
            for query in (query for client in self.clients for query in client.queries.values()):
                query.misses = query.misses or query.sees == "own"

    def _change_rights(self) -> None:
        if self.server is None:
            return
        self.policy.write_text(policy_of(self.models, self.dice))
        for server in filter(None, (self.server, self.second)):
            before = server.log.count("the topics were read anew")
            server.signal(signal.SIGHUP)
            deadline = time.monotonic() + PATIENCE
            while server.log.count("the topics were read anew") == before:
                if time.monotonic() > deadline:
                    raise AssertionError(f"the policy is not read anew\n{self._tail()}")
                time_passes(0.01)
        rights = json.loads(self.policy.read_text())["shift"]["models"]
        self.log.append(f"{self.step} the role shift has now {json.dumps(rights)}")
        self.counts["changes of rights"] += 1
        self.changes_of_rights += 1

    def _leave_and_come_back(self) -> None:
        client = self.dice.choice(self.clients)
        self.log.append(f"{self.step} {client.user} asks again")
        if self.dice.random() < 0.7:
            client.close()
        if self.dice.random() < 0.6:
            self._write()
        if client.is_connected:
            # It only asks again.
            for query in [each for each in client.queries.values() if not each.code and each.name != "mark"]:
                self._resume(client, query)
        else:
            self._join(client)

    def _ask_again(self) -> None:
        """When nothing has happened the answer is that it is the same."""
        for client in self.clients:
            if client.is_slow or not client.is_connected:
                continue
            for query in [each for each in client.queries.values() if not each.code and each.name != "mark"]:
                if query.digest and not self._misses(query):
                    told = self._ask(client, query, knows=True)
                    if told != "same":
                        raise self._failure(client, query, f"nothing has changed, and zLive with known is {told}")
                    self.counts["asked again, same"] += 1

    def run_step(self) -> None:
        """Something happens; then everybody has what a read answers.

        :raises Difference: with all that is known of it.
        """
        try:
            self._step()
        except Broken as broken:
            raise self._failure(broken.watcher, broken.query, broken.reason) from broken
        except Difference:
            raise
        except Exception as error:
            raise Difference(
                "\n".join(
                    [
                        f"{type(error).__name__}: {error}",
                        f"again: ZCOMM_TEST_SEED={self.seed} (step {self.step})",
                        *(f"  {line[:600]}" for line in self.log),
                        self._tail(),
                    ]
                )
            ) from error

    def _step(self) -> None:
        self.step += 1
        self._end_held()
        for _ in range(self.dice.choice([1, 2, 3])):
            what = self.dice.random()
            if what < 0.70:
                for _ in range(self.dice.choice([1, 1, 2, 4, 8])):
                    self._write()
            elif what < 0.80:
                client = self.dice.choice(self.clients)
                if not client.is_slow and client.is_connected:
                    self._hurry(client) if self.dice.random() < 0.25 else self._new_query(client)
            elif what < 0.86:
                self._leave_and_come_back()
            elif what < 0.90:
                if CHANGES_RIGHTS:
                    self._change_rights()
            elif what < 0.93:
                client = self.dice.choice(self.clients)
                client.is_slow = not client.is_slow and len(self.clients) > 1
                self.log.append(f"{self.step} {client.user} is {'slow' if client.is_slow else 'slow no more'}")
            elif what < 0.94:
                self._ask_again_when_quiet()
            elif what < 0.955:
                self._restart_server()
            elif what < 0.97:
                self._restart_database()
            elif what < 0.985:
                self._restore()
            elif what < 0.99:
                self._vandalize()
        if self.step % 10 == 0:
            self._bound()
            for client in self.clients:
                client.is_slow = False
        self.settle()
        self._compare_all()

    def _is_behind(self) -> bool:
        """Whether a server has said that a query of its is behind others."""
        servers = [server for server in (self.server, self.second) if server is not None]
        return any(text in server.log for server in servers for text in BEHIND)

    def _later(self) -> str:
        try:
            self.compare()
        except Difference as difference:
            return str(difference).partition("\n")[0]
        return "none differs"

    def _compare_all(self) -> None:
        """As :meth:`compare`; who has a query that took long is behind, as docs/live.rst says, and catches up."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self.compare()
            except Difference as difference:
                if not self._is_behind():
                    # What the server says of that comes by another way than what it tells clients.
                    time_passes(1.0)
                if time.monotonic() > until or not self._is_behind():
                    self.settle()
                    raise Difference(f"{difference}\na second later: {self._later()}") from None
            self.counts["behind"] += 1
            time_passes(0.1)
            self.settle()

    def _ask_again_when_quiet(self) -> None:
        self.settle()
        self._compare_all()
        self._ask_again()


def _has_too_many(query: Query, read: list[bytes] | str) -> bool:
    """Whether a query is no more because a read has more rows than one may have, or larger ones."""
    if TOO_LARGE in query.error:
        return read == "internal" if isinstance(read, str) else sum(map(len, read)) > 2 << 20
    return query.code == "invalid" and TOO_MANY in query.error and not isinstance(read, str) and len(read) > 1000


def _difference(read: list[bytes], has: list[bytes]) -> Iterator[str]:
    """The lines that only one of both has; or their order."""
    missing = [row.decode() for row in read if row not in has]
    more = [row.decode() for row in has if row not in read]
    yield from (f"  only a read has [{read.index(row.encode())}] {row[:400]}" for row in missing[:4])
    yield from (f"  only the client has [{has.index(row.encode())}] {row[:400]}" for row in more[:4])
    if not missing and not more:
        yield f"  the same rows in another order, or some twice; a read has {_brief(read)}"
        yield f"  the client {_brief(has)}"
    yield f"  a read has {len(read)} rows, the client {len(has)}"


def _brief(rows: list[bytes]) -> str:
    return b" ".join(rows).decode()[:1500]


def time_passes(seconds: float) -> None:
    """Wait for something that says nothing."""
    threading.Event().wait(seconds)
