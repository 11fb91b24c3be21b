"""Conditions on members: a change of these concerns the queries whose rows are in reach by others then, and no more."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from zcomm.data.models import Column, Model
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.interfaces import Among
from zcomm.live.log import KeyForm
from zcomm.live.memberships import MAX_MEMBERS, Memberships
from zcomm.live.query import Query
from zcomm.live.requests import question_of
from zcomm.live.rows import Row, View

SCHEMA = """
Members:
  id: {type: int, pk: true}
  board_id: {type: int}
  user: {type: str}
  team: {type: str}
Tasks:
  id: {type: int, pk: true}
  board_id: {type: int}
  part_id: {type: int}
"""
KEY = KeyForm(("id",), "", list)


def models() -> dict[str, Model]:
    """Models whose texts are compared as Python compares them."""
    found = load_schema(SCHEMA, "test").models
    column = Column(by_code_point=True)
    return {
        name: replace(model, fields={name: replace(each, column=column) for name, each in model.fields.items()})
        for name, model in found.items()
    }


class World:
    """Members, queries of users, and what is known of whose members are which."""

    def __init__(self, key: KeyForm | str = KEY):
        self.models = models()
        self.memberships = Memberships(self.models.__getitem__, lambda model: key, False)
        self.members: dict[int, dict[str, Any]] = {}

    def query(self, *conditions: dict[str, str]) -> Query:
        """A query of tasks: of the boards, and of the parts, of members like these."""
        among = [Among("Members", "board_id", tuple(each.items())) for each in conditions]
        tasks = self.models["Tasks"]
        rows = dict(zip(("board_id", "part_id"), among, strict=False))
        question, plan = question_of(parse_command({"action": "read", "model": "Tasks"}), tasks, rows)
        query = Query(question, plan, tasks, View(tasks, question.fields, question.order, False), False)
        self.memberships.add(query)
        return query

    def learn(self) -> None:
        """Read what the conditions find of which that is not known."""
        for membership in list(self.memberships.unknown):
            where = dict(zip(membership.names, (value for _, value in membership.question[1].slots), strict=True))
            self.memberships.learn(membership, dict.fromkeys(self.matching(where)))

    def matching(self, where: dict[str, Any]) -> dict[int, Any]:
        """By their keys the boards of the members that match."""
        found = {key: row for key, row in self.members.items() if where.items() <= row.items()}
        return {key: row["board_id"] for key, row in found.items()}

    def found(self, conditions: list[dict[str, str]]) -> dict[int, Any]:
        """Those that match any of the conditions."""
        return {key: board for where in conditions for key, board in self.matching(where).items()}

    def concerned(self, *keys: int) -> set[Query]:
        """The queries that a change of these members concerns."""
        watched = self.memberships.watched("Members")
        rows = {}
        for key in keys:
            if key in self.members and watched is not None:
                member = self.members[key]
                rows[key] = Row(watched.form, (*(member[name] for name in watched.form.names), key))
        return {query for query in self.memberships.look("Members", keys, rows) if query is not None}


@pytest.mark.parametrize("seed", range(30))
def test_those_whose_members_are_others_are_concerned(seed: int):
    """Whatever comes, goes and changes, in whichever order queries come: each one whose members are others now, and
    of the ones whose members are known none that neither had nor has one of those that changed."""
    dice = random.Random(seed)
    world = World()
    queries: dict[Query, list[dict[str, str]]] = {}
    for _ in range(150):
        if not queries or dice.random() < 0.15:
            conditions = [
                {"user": dice.choice("abc"), **({"team": dice.choice("xy")} if dice.random() < 0.5 else {})}
                for _ in range(dice.choice((1, 1, 2)))
            ]
            queries[world.query(*conditions)] = conditions
        if dice.random() < 0.1:
            query = dice.choice(list(queries))
            del queries[query]
            world.memberships.remove(query)
            if not queries:
                assert not world.memberships.models and not world.memberships.unknown
                continue
        before = {query: world.found(queries[query]) for query in queries}
        is_known = dice.random() < 0.7
        if is_known:
            world.learn()
        keys = {dice.randrange(12) for _ in range(dice.choice((1, 1, 3)))}
        for key in keys:
            if dice.random() < 0.3:
                world.members.pop(key, None)
            else:
                made = {
                    "id": key,
                    "board_id": dice.randrange(3),
                    "user": dice.choice("abcd"),
                    "team": dice.choice("xyz"),
                }
                world.members[key] = made
        after = {query: world.found(queries[query]) for query in queries}
        concerned = world.concerned(*keys)
        assert concerned >= {query for query in queries if before[query] != after[query]}
        if is_known:
            members = {query: {*before[query], *after[query]} for query in queries}
            assert concerned == {query for query in queries if not keys.isdisjoint(members[query])}


def test_what_nobody_can_tell_concerns_all():
    """Members without a key that can be named, those that cannot be read, too many, and any that may have changed."""
    world = World("it has no key")
    one, other = world.query({"user": "a"}), world.query({"user": "b"})
    assert world.concerned(1) == {one, other} and not world.memberships.unknown

    world = World()
    one, other = world.query({"user": "a"}), world.query({"user": "b"})
    world.learn()
    world.members[1] = {"id": 1, "board_id": 1, "user": "a", "team": None}
    assert world.concerned(1) == {one}
    assert set(world.memberships.forget("Members")) == {one, other} and len(world.memberships.unknown) == 2
    world.learn()
    assert world.concerned(2) == set()
    world.memberships.distrust("Members")
    assert world.concerned(2) == {one, other} and not world.memberships.unknown

    world = World()
    one, other = world.query({"user": "a"}), world.query({"user": "b"})
    world.members = {key: {"id": key, "board_id": 1, "user": "a", "team": None} for key in range(MAX_MEMBERS + 1)}
    world.learn()
    assert world.concerned(5000) == {one} and not world.memberships.unknown
