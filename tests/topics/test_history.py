"""The messages that topics keep, against a reference that remembers all there ever were: random histories of appending,
listening, forgetting and time, with so little memory that it is used up again and again."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.examples import examples

from zcomm.interfaces import Kept, KeptMessage, Position
from zcomm.topics import history
from zcomm.topics.history import MESSAGE, NOTED, TOPIC, Histories

TOPICS = ("a", "b", "c", "d")
USERS = (None, "ann", "bob")

topics = st.sampled_from(TOPICS)
users = st.sampled_from(USERS)


class Model(RuleBasedStateMachine):
    """Each topic's lives: in one of them all messages ever appended are in ``said``, by offset from 1 on."""

    @initialize(total=st.sampled_from([4_000, 20_000, 1_000_000]), groups=st.sampled_from([1, 4096]))
    def begin(self, total: int, groups: int) -> None:
        history.GROUPS = groups
        self.time = 1_000_000.0
        self.total = total
        self.histories = Histories(total, lambda: self.time)
        #: All messages of each numbering there ever was, by topic and epoch.
        self.said: dict[tuple[str, str], list[bytes]] = {}
        self.listeners = dict.fromkeys(TOPICS, 0)
        self.expires: dict[tuple[str, str], float] = {}
        self.known: dict[tuple[str, str], float] = {}
        self.limit: dict[tuple[str, str], int] = {}
        #: Positions that a client may have been told.
        self.told: list[tuple[str, Position]] = []
        self.count = 0
        self.was_dropped: set[tuple[str, str]] = set()

    def teardown(self) -> None:
        if hasattr(self, "histories"):
            self.end()
        history.GROUPS = 4096

    def end(self) -> None:
        # Everything ends: the accounts are even.
        for topic, count in self.listeners.items():
            for _ in range(count):
                self.histories.unlisten(topic)
        self.time += 100 * history.KNOWN
        for _ in range(100):
            self.histories.expire(self.time)
        for topic in TOPICS:
            self.histories.drop(topic)
        assert self.histories.size == 0 and len(self.histories) == 0 and not self.histories._authors

    def current(self, topic: str) -> Position:
        for _ in TOPICS:
            self.histories.expire(self.time)
        position = self.histories.position(topic)
        key = topic, position.epoch
        self.said.setdefault(key, [])
        assert len(self.said[key]) == position.offset
        self.told.append((topic, position))
        return position

    @rule(
        topic=topics, user=users, size=st.integers(0, 900), kept=st.integers(1, 12), keep=st.sampled_from([1.0, 60.0])
    )
    def append(self, topic: str, user: str | None, size: int, kept: int, keep: float) -> None:
        self.count += 1
        fragment = b"%d " % self.count + b"x" * size
        before = self.current(topic)
        log = self.histories.append(topic, Kept(kept, keep), fragment, user, "c1")
        position = log.position
        key = topic, position.epoch
        if position.epoch != before.epoch:
            # Forgotten on the way: the numbering is a new one, which begins anew.
            assert key not in self.said and position.offset == 1
        self.said.setdefault(key, []).append(fragment)
        assert position.offset == len(self.said[key])
        self.expires[key] = self.time + keep
        self.known[key] = self.time + max(history.KNOWN, history.KEEPS * keep)
        self.limit[key] = kept
        self.told.append((topic, position))

    @rule(topic=topics, data=st.data())
    def resume(self, topic: str, data: st.DataObject) -> None:
        now = self.current(topic)
        if self.told and data.draw(st.booleans()):
            since = self.told[data.draw(st.integers(0, len(self.told) - 1))][1]
        else:
            since = Position(now.epoch, data.draw(st.integers(0, now.offset + 2)))
        found = self.histories.resume(topic, since)
        assert found.position == now
        said = self.said[topic, now.epoch]
        if since.epoch != now.epoch:
            assert found.reason == "epoch"
        elif since.offset > now.offset:
            assert found.reason == "history_lost"
        elif not found.reason:
            # Exactly what was missed.
            assert [message.fragment for message in found.messages] == said[since.offset :]
            assert [message.offset for message in found.messages] == [*range(since.offset + 1, now.offset + 1)]
        else:
            assert found.reason == "too_old" and since.offset < now.offset
            assert self.may_be_lost(topic, now, since.offset)
        if found.reason:
            assert not found.messages

    def may_be_lost(self, topic: str, now: Position, offset: int) -> bool:
        """Whether the messages after ``offset`` may be gone: for their age, their number, or for want of memory."""
        key = topic, now.epoch
        if self.time >= self.expires[key] or now.offset - offset > self.limit[key]:
            return True
        return self.total < 1_000_000 or self.ever_small[key] < now.offset - offset

    @property
    def ever_small(self) -> dict[tuple[str, str], int]:
        # A limit that was lower once has dropped what no later one brings back.
        return {key: min(limit, self.lowest.get(key, limit)) for key, limit in self.limit.items()}

    @property
    def lowest(self) -> dict[tuple[str, str], int]:
        found = {}
        for key in self.limit:
            log = self.histories._logs.get(key[0])
            if log is not None and log.epoch == key[1]:
                found[key] = len(log.messages)
        return found

    @rule(
        topic=topics,
        data=st.data(),
        limit=st.integers(1, 6),
        reverse=st.booleans(),
        has_since=st.booleans(),
        has_before=st.booleans(),
    )
    def read(self, topic, data, limit: int, reverse: bool, has_since: bool, has_before: bool) -> None:
        now = self.current(topic)
        offsets = st.integers(0, now.offset + 2)
        since = Position(now.epoch, data.draw(offsets)) if has_since else None
        before = Position(data.draw(st.sampled_from(["", now.epoch])), data.draw(offsets)) if has_before else None
        found = self.histories.read(topic, since, before, limit, reverse)
        assert found.position == now
        said = self.said[topic, now.epoch]
        if found.reason:
            assert since is not None and not found.messages
            if found.reason == "history_lost":
                assert since.offset > now.offset
            else:
                assert found.reason == "too_old" and since.offset < now.offset
                assert self.may_be_lost(topic, now, since.offset)
            return
        offsets_found = [message.offset for message in found.messages]
        assert all(said[message.offset - 1] == message.fragment for message in found.messages)
        ordered = list(reversed(offsets_found)) if reverse else offsets_found
        # Never a gap.
        assert ordered == [*range(ordered[0], ordered[0] + len(ordered))] if ordered else True
        assert len(ordered) <= limit
        last = now.offset if before is None else min(now.offset, before.offset - 1)
        if since is not None:
            wanted = [*range(since.offset + 1, last + 1)]
            assert ordered == (wanted[-limit:] if reverse else wanted[:limit])
            assert found.more == (len(wanted) > limit)
        elif ordered and (reverse or not found.more):
            assert ordered[-1] == last

    @rule(topic=topics)
    def listen(self, topic: str) -> None:
        before = self.current(topic)
        assert self.histories.listen(topic) == before
        self.listeners[topic] += 1

    @rule(topic=topics)
    def unlisten(self, topic: str) -> None:
        self.histories.unlisten(topic)
        self.listeners[topic] = max(0, self.listeners[topic] - 1)

    @precondition(lambda self: self.count)
    @rule(topic=topics)
    def drop(self, topic: str) -> None:
        before = self.current(topic)
        if self.histories.drop(topic):
            after = self.current(topic)
            assert after.epoch != before.epoch and after.offset == 0
            self.was_dropped.add((topic, before.epoch))

    @rule(seconds=st.sampled_from([0.5, 1.0, 30.0, 61.0, 3600.0, 23 * 3600.0, 25 * 3600.0]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

    @rule()
    def renew(self) -> None:
        self.histories.renew()

    @invariant()
    def numberings_are_never_reused(self) -> None:
        if not hasattr(self, "histories"):
            return
        for topic in TOPICS:
            position = self.histories.position(topic)
            assert (topic, position.epoch) not in self.was_dropped
            said = self.said.get((topic, position.epoch))
            assert said is None or len(said) == position.offset
            # A topic that somebody listens to, or whose time has not come, is what it was.
            assert not any(other != topic for other, epoch in self.said if epoch == position.epoch)

    @invariant()
    def the_accounts_are_right(self) -> None:
        if not hasattr(self, "histories"):
            return
        logs = self.histories._logs.values()
        size = 0
        by_user: dict[str, int] = {}
        for log in logs:
            if log.top:
                size += TOPIC
            if log.owner is not None:
                by_user[log.owner.name] = by_user.get(log.owner.name, 0) + TOPIC
            for fragment, user, _ in log.messages:
                size += MESSAGE + len(fragment)
                if user is not None:
                    by_user[user.name] = by_user.get(user.name, 0) + MESSAGE + len(fragment)
        assert self.histories.size == size
        assert {name: user.size for name, user in self.histories._authors.items()} == by_user
        assert all(taken <= self.total // 4 for taken in by_user.values())
        for user in self.histories._authors.values():
            assert sum(user.logs.values()) == user.size
        # Beyond what there is stand only topics that somebody listens to, which have nothing left to give.
        assert size <= self.total or not any(log.messages for log in logs)


class TestHistories(Model.TestCase):
    settings = examples(60, stateful_step_count=50)


def filled(count: int, size: int = 10, keep: float = 60.0) -> tuple[Histories, list[float]]:
    now = [0.0]
    histories = Histories(1 << 30, lambda: now[0])
    for number in range(count):
        histories.append("t", Kept(10_000, keep), b"%d" % number + b"x" * size, None, "")
    return histories, now


def test_a_topic_that_was_forgotten_and_came_again():
    """It has another numbering, in which nobody's old position is one, however many messages it has by then."""
    histories, now = filled(5)
    old = histories.position("t")
    now[0] += history.KNOWN * 2
    histories.expire(now[0])
    assert len(histories) == 0
    for _ in range(10):
        histories.append("t", Kept(100, 60.0), b"new", None, "")
    for offset in range(6):
        assert histories.resume("t", Position(old.epoch, offset)).reason == "epoch"
        assert histories.read("t", Position(old.epoch, offset), None, 10, False).reason == "epoch"


def test_a_topic_before_its_first_message():
    """Its position is known to who asked for it, though nothing is kept of it: what comes then is told."""
    histories, _ = filled(0)
    first = histories.position("t")
    assert len(histories) == 0 and first.offset == 0
    histories.append("t", Kept(100, 60.0), b"1", None, "")
    assert [m.fragment for m in histories.resume("t", first).messages] == [b"1"]
    assert histories.resume("u", first).reason == "epoch"


def test_a_position_after_what_is_kept_has_expired():
    """Who knew of the last message has lost nothing; who did not is told that it is too old."""
    histories, now = filled(3)
    now[0] += 61
    top = histories.position("t")
    assert top.offset == 3 and not histories.resume("t", top).reason
    assert histories.resume("t", Position(top.epoch, 2)).reason == "too_old"
    assert histories.read("t", None, None, 10, False).messages == []
    assert histories.append("t", Kept(10, 60.0), b"4", None, "").top == 4
    assert histories.resume("t", top).messages == [KeptMessage(4, b"4", "")]


def test_time_counts_from_the_last_message():
    """A topic that is published to keeps all it has, for as long as its kind says after the last."""
    histories, now = filled(0)
    start = histories.position("t")
    for number in range(10):
        histories.append("t", Kept(100, 60.0), b"%d" % number, None, "")
        now[0] += 59
    assert len(histories.resume("t", start).messages) == 10
    now[0] += 1
    assert histories.resume("t", start).reason == "too_old"


@pytest.mark.parametrize(("missed", "reason"), [(999, ""), (1000, ""), (1001, "too_many")])
def test_how_many_messages_are_told(missed: int, reason: str):
    """A thousand; never a part of more."""
    histories, _ = filled(missed)
    found = histories.resume("t", Position(histories.position("t").epoch, 0))
    assert found.reason == reason and len(found.messages) == (0 if reason else missed)


def test_how_many_bytes_are_told():
    """A MiB, and never a part of more; who reads gets as many as fit, one at least, and that there are more."""
    for extra, reason in ((0, ""), (1, "too_many")):
        histories = Histories(1 << 30, lambda: 0.0)
        for number in range(16):
            histories.append("t", Kept(100, 60.0), b"x" * (65536 + (extra if number == 5 else 0)), None, "")
        start = Position(histories.position("t").epoch, 0)
        assert histories.resume("t", start).reason == reason
        found = histories.read("t", start, None, 1000, False)
        assert len(found.messages) == (15 if extra else 16) and found.more is bool(extra)
    big, _ = filled(3, size=2 * 1024 * 1024)
    found = big.read("t", None, None, 10, True)
    assert [message.offset for message in found.messages] == [3] and found.more


def test_one_user_without_end():
    """What one publishes to ever new topics takes its share, and no topic, heap or name grows beyond that; what others
    have published stays."""
    histories = Histories(1_000_000, lambda: 0.0)
    histories.append("bobs", Kept(100, 60.0), b"hello", "bob", "")
    for number in range(20_000):
        histories.append(f"t{number}", Kept(100, 60.0), b"x" * 500, "ann", "")
        assert len(histories._due) < NOTED + 1000
    assert histories.size <= 250_000 + 2000 and len(histories) < 250
    assert histories.read("bobs", None, None, 10, False).messages[0].fragment == b"hello"


def test_everybody_without_end():
    """Many users together take the whole, and no more; the topics lose first that were published to the longest ago."""
    histories = Histories(1_000_000, lambda: 0.0)
    for number in range(20_000):
        histories.append(f"t{number}", Kept(100, 60.0), b"x" * 500, f"user{number % 100}", "")
    assert 900_000 < histories.size <= 1_000_000
    assert histories.read("t19999", None, None, 10, False).messages
    assert not histories.read("t1", None, None, 10, False).messages
    assert len(histories._authors) <= 100


def test_a_topic_that_empties_and_fills_again():
    """What is noted to be looked at later does not grow with each time."""
    now = [0.0]
    histories = Histories(1_000_000, lambda: now[0])
    for _ in range(1000):
        histories.append("t", Kept(10, 1.0), b"x", None, "")
        now[0] += 2.0
    assert len(histories._due) <= 4
