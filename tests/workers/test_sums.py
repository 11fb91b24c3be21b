"""The sums over workers: values in, values out."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from zcomm.web.metrics import text_of
from zcomm.workers.sums import Totals, one_report


def numbers(clients: float, commands: float, drops: dict[str, float] | None = None) -> list[Any]:
    samples = [["zcomm_drops_total", {"reason": reason}, count] for reason, count in (drops or {}).items()]
    return [
        ["zcomm_clients", "gauge", "Clients", [["zcomm_clients", {}, clients]]],
        ["zcomm_commands", "counter", "Commands", [["zcomm_commands_total", {}, commands]]],
        ["zcomm_drops", "counter", "Drops", samples],
    ]


def values(families: list[Any]) -> dict[tuple[str, ...], float]:
    return {
        (sample, *labels.values()): value for _, _, _, samples in families for sample, labels, value in samples if value
    }


def test_gauges_are_of_those_who_answer_and_counters_never_go_back():
    """One ends, one does not answer, another begins with nothing."""
    totals = Totals()
    both = {1: numbers(3, 10, {"slow": 1}), 2: numbers(4, 20, {"slow": 2, "early": 5})}
    assert values(totals.add(both)) == {
        ("zcomm_clients",): 7,
        ("zcomm_commands_total",): 30,
        ("zcomm_drops_total", "slow"): 3,
        ("zcomm_drops_total", "early"): 5,
    }
    # The second is late: what it has counted is known.
    assert values(totals.add({1: numbers(3, 11, {"slow": 1})}))[("zcomm_commands_total",)] == 31
    totals.ended(1)
    assert values(totals.add({2: numbers(4, 21, {"slow": 2, "early": 5}), 3: numbers(1, 0)})) == {
        ("zcomm_clients",): 5,
        ("zcomm_commands_total",): 32,
        ("zcomm_drops_total", "slow"): 3,
        ("zcomm_drops_total", "early"): 5,
    }
    totals.ended(2)
    totals.ended(3)
    totals.ended(4)
    assert values(totals.add({}))[("zcomm_commands_total",)] == 32


def test_the_text_is_that_of_prometheus():
    """Types and labels are what they were, each metric is there once."""
    text = text_of(Totals().add({1: numbers(3, 10, {'a "b"\n': 1}), 2: numbers(4, 20)})).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: family.type for name, family in families.items()} == {
        "zcomm_clients": "gauge",
        "zcomm_commands": "counter",
        "zcomm_drops": "counter",
    }
    assert families["zcomm_drops"].samples[0].labels == {"reason": 'a "b"\n'}


def test_one_report():
    """It is well when all that answer are; who does not answer is named."""
    well = {"status": "ok", "clients": 2, "database": "ok"}
    assert one_report({1: well, 2: well}, [], 3.14159) == {
        "status": "ok",
        "uptime": 3.142,
        "clients": 4,
        "workers": {"running": 2, "missing": []},
        "database": "ok",
    }
    report = one_report({1: well, 3: {**well, "status": "unavailable", "database": "unavailable"}}, [4, 2], 1)
    assert (report["status"], report["database"], report["workers"]["missing"]) == (
        "unavailable",
        "unavailable",
        [2, 4],
    )
    assert one_report({}, [1], 0)["status"] == "unavailable"
    assert "database" not in one_report({1: {"status": "ok", "clients": 0}}, [], 0)


def test_what_each_tells_of_all_is_not_added_up():
    """The engine, and the processes and clients that each has heard of."""
    report = one_report(
        {1: {"status": "ok", "engine": "ok", "nodes": 2}, 2: {"status": "ok", "engine": "unavailable", "nodes": 3}},
        [],
        1,
    )
    assert (report["engine"], report["nodes"], report["status"]) == ("unavailable", 3, "ok")

    def told(up: float, nodes: float, clients: float) -> list[Any]:
        values = {"engine_up": up, "nodes": nodes, "clients_of_all_nodes": clients}
        return [[f"zcomm_{name}", "gauge", "", [[f"zcomm_{name}", {}, value]]] for name, value in values.items()]

    found = Totals().add({1: told(1, 2, 5), 2: told(0, 3, 4)})
    assert {name: samples[0][2] for name, _, _, samples in found} == {
        "zcomm_engine_up": 0,
        "zcomm_nodes": 3,
        "zcomm_clients_of_all_nodes": 5,
    }
