"""``/metrics``: the counters of a server in Prometheus' text format.

The counters are plain numbers where they are counted; they become metrics only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zcomm.bifrost.server import zBifrost
from zcomm.budget.budgets import Budgets
from zcomm.interfaces import Anybody

__all__ = ["Family", "metrics_of", "numbers_of", "text_of"]

#: A metric in plain values: its name, type and meaning, and of each of its samples the name, labels and value.
Family = list[Any]

#: How many users are told of, and characters of a name.
DEAREST = 10
MAX_NAME = 80


def metrics_of(bifrost: zBifrost) -> bytes:
    """The numbers of ``bifrost``, as they are now, as text."""
    registry = CollectorRegistry()
    registry.register(_Numbers(bifrost))
    return generate_latest(registry)


def numbers_of(bifrost: zBifrost) -> list[Family]:
    """The numbers of ``bifrost``, as they are now, in plain values that one process can tell another."""
    return [
        [each.name, each.type, each.documentation, [[one.name, one.labels, one.value] for one in each.samples]]
        for each in _Numbers(bifrost).collect()
    ]


def text_of(families: Iterable[Family]) -> bytes:
    """Metrics of plain values as text."""
    registry = CollectorRegistry()
    registry.register(_Told(families))
    return generate_latest(registry)


class _Told:
    """Gives the registry of one request metrics of plain values."""

    def __init__(self, families: Iterable[Family]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Make them; called by the registry."""
        for name, kind, meaning, samples in self._families:
            metric = Metric(name, meaning, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, labels, value)
            yield metric


class _Numbers:
    """Gives the registry of one request the numbers of a server."""

    def __init__(self, bifrost: zBifrost):
        self._bifrost = bifrost

    def collect(self) -> Iterator[Metric]:
        """Read the numbers; called by the registry."""
        factory = self._bifrost.factory
        state = factory.state
        yield GaugeMetricFamily("zcomm_clients", "Clients connected and admitted", len(factory.registry))
        # Whoever asks for the numbers is one of them, until they are answered.
        pending = max(0, factory.pending.count - 1)
        yield GaugeMetricFamily("zcomm_handshakes_pending", "Opening handshakes not decided yet", pending)
        yield GaugeMetricFamily(
            "zcomm_handshakes_waiting", "Connections that wait for a place", factory.pending.waiting
        )
        running = queued = 0
        for client in (*factory.registry, *factory.callers):
            running += client.running
            if client.transport is not None:
                queued += client.transport.queued
        yield GaugeMetricFamily("zcomm_commands_in_flight", "Commands that are not answered yet", running)
        yield GaugeMetricFamily("zcomm_queued_bytes", "Bytes that wait for slow clients", queued)
        yield GaugeMetricFamily(
            "zcomm_results_held_bytes", "Bytes of results on their way to clients", state.budgets.memory.held
        )
        hub = self._bifrost.topics.hub
        yield GaugeMetricFamily("zcomm_topics", "Topics that somebody is subscribed to", len(hub))
        yield GaugeMetricFamily("zcomm_subscriptions", "Subscriptions of all connections", hub.subscriptions)
        kept = getattr(hub.engine, "histories", None)
        if kept is not None:
            yield GaugeMetricFamily("zcomm_history_bytes", "Bytes of the messages that topics keep", kept.size)
        yield CounterMetricFamily(
            "zcomm_messages", "Messages of topics delivered by this program so far", hub.delivered
        )
        engine = hub.engine
        if engine.is_shared:
            yield GaugeMetricFamily("zcomm_engine_up", "Whether the engine can be used", int(not engine.is_away))
            yield GaugeMetricFamily("zcomm_nodes", "Processes that share the engine", len(engine.nodes()) + 1)
            clients = len(factory.registry) + engine.elsewhere
            yield GaugeMetricFamily("zcomm_clients_of_all_nodes", "Clients of all those processes", clients)
        live = self._bifrost.live_counts()
        if live is not None:
            yield GaugeMetricFamily("zcomm_live_queries", "Live queries whose rows are kept", live.queries)
            yield GaugeMetricFamily("zcomm_live_subscriptions", "Live queries of all clients", live.subscriptions)
            yield GaugeMetricFamily("zcomm_live_bytes", "Bytes that live queries take", live.size)
            yield CounterMetricFamily("zcomm_live_steps", "Steps of the live queries so far", live.steps)
            yield CounterMetricFamily("zcomm_live_events", "Events of live queries sent so far", live.events)
        yield from _dearest(state.budgets)
        yield CounterMetricFamily("zcomm_clients_opened", "Clients admitted so far", factory.opened_count)
        yield CounterMetricFamily("zcomm_commands", "Commands received so far", state.commands)
        yield CounterMetricFamily(
            "zcomm_broadcasts", "Messages announced to other clients so far", self._bifrost.broadcaster.told
        )
        errors = CounterMetricFamily("zcomm_command_errors", "Errors answered so far, by code", labels=["code"])
        for code, count in sorted(state.errors.items()):
            errors.add_metric([code], count)
        yield errors
        drops = CounterMetricFamily(
            "zcomm_drops", "Connections refused or ended by the server so far, by reason", labels=["reason"]
        )
        for reason, count in sorted(factory.drops.items()):
            drops.add_metric([reason], count)
        yield drops


def _dearest(budgets: Budgets) -> Iterator[Metric]:
    """The users that have cost most lately, and what."""
    cost = GaugeMetricFamily(
        "zcomm_user_cost_seconds",
        "Seconds that the dearest users have taken of the reactor, the database and the threads; half of it is "
        "forgotten within a minute",
        labels=["user", "of"],
    )
    held = GaugeMetricFamily("zcomm_user_held_bytes", "Bytes of results on their way to these users", labels=["user"])
    refusals = GaugeMetricFamily(
        "zcomm_user_refusals", "Commands of these users that were refused over a budget", labels=["user"]
    )
    named: set[str] = set()
    for account in budgets.dearest(DEAREST):
        user = _shown(account.owner)
        while user in named:
            # Two series with the same labels would spoil all metrics.
            user += "'"
        named.add(user)
        for of, seconds in (
            ("reactor", account.on_reactor),
            ("database", account.in_database.value),
            ("threads", account.in_threads.value),
        ):
            cost.add_metric([user, of], seconds)
        held.add_metric([user], account.held)
        refusals.add_metric([user], account.refused)
    yield from (cost, held, refusals)


def _shown(owner: Hashable) -> str:
    """The name of a user, as a label: a host's own users may be called anything."""
    name = f"client {owner.id} at {owner.address}" if isinstance(owner, Anybody) else str(owner)
    return "".join(each if each.isprintable() else "?" for each in name[:MAX_NAME])
