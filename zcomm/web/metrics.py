"""``/metrics``: the counters of a server in Prometheus' text format.

The counters are plain numbers where they are counted; they become metrics only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zcomm.bifrost.server import zBifrost

__all__ = ["metrics_of"]


def metrics_of(bifrost: zBifrost) -> bytes:
    """The numbers of ``bifrost``, as they are now, as text."""
    registry = CollectorRegistry()
    registry.register(_Numbers(bifrost))
    return generate_latest(registry)


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
        yield GaugeMetricFamily(
            "zcomm_commands_in_flight",
            "Commands that are not answered yet",
            sum(client.running for client in factory.registry),
        )
        yield GaugeMetricFamily(
            "zcomm_queued_bytes",
            "Bytes that wait for slow clients",
            sum(client.transport.queued for client in factory.registry if client.transport is not None),
        )
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
