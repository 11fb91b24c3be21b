"""The sums over workers: one health report and one set of metrics, whichever of them is asked."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from zcomm.web.metrics import Family

__all__ = ["Totals", "one_report"]

#: A sample of a metric: its name and labels.
_Key = tuple[str, tuple[tuple[str, str], ...]]


def one_report(reports: Mapping[int, Mapping[str, Any]], missing: Iterable[int], uptime: float) -> dict[str, Any]:
    """The health report of all workers.

    :param reports: of those that have answered, by their numbers.
    :param missing: the numbers of those that have not.
    :param uptime: seconds that the server runs.
    """
    late = sorted(missing)
    well = bool(reports) and all(each.get("status") == "ok" for each in reports.values())
    report: dict[str, Any] = {
        # Clients are served as long as one of them serves.
        "status": "ok" if well else "unavailable",
        "uptime": round(uptime, 3),
        "clients": sum(int(each.get("clients", 0)) for each in reports.values()),
        "workers": {"running": len(reports), "missing": late},
    }
    databases = [each["database"] for each in reports.values() if "database" in each]
    if databases:
        report["database"] = "ok" if all(each == "ok" for each in databases) else "unavailable"
    engines = [each["engine"] for each in reports.values() if "engine" in each]
    if engines:
        report["engine"] = "ok" if all(each == "ok" for each in engines) else "unavailable"
        report["nodes"] = max(int(each.get("nodes", 0)) for each in reports.values())
    return report


#: What each worker tells of all of them: what is made of several answers.
_OF_ALL: Mapping[str, Callable[[float, float], float]] = {
    "zcomm_engine_up": min,
    "zcomm_nodes": max,
    "zcomm_clients_of_all_nodes": max,
}


class Totals:
    """The metrics of all workers. Counters never go back: those of a worker that has ended, as they were when it was
    asked last, are counted on."""

    def __init__(self) -> None:
        self._last: dict[Hashable, dict[_Key, float]] = {}
        self._ended: dict[_Key, float] = {}
        #: What is known of each metric, in the order in which they came: type and meaning.
        self._known: dict[str, tuple[str, str]] = {}
        self._names: dict[str, str] = {}

    def add(self, answers: Mapping[Hashable, Iterable[Family]]) -> list[Family]:
        """The sums over ``answers``, by the process that has given each, and over what others have counted before."""
        sums: dict[_Key, float] = dict(self._ended)
        for process, families in answers.items():
            counted: dict[_Key, float] = {}
            for name, kind, meaning, samples in families:
                self._known.setdefault(name, (kind, meaning))
                for sample, labels, value in samples:
                    self._names[sample] = name
                    key = sample, tuple(sorted(labels.items()))
                    if kind == "counter":
                        counted[key] = value
                    elif name in _OF_ALL and key in sums:
                        sums[key] = _OF_ALL[name](sums[key], value)
                    else:
                        sums[key] = sums.get(key, 0.0) + value
            self._last[process] = counted
        for counted in self._last.values():
            for key, value in counted.items():
                sums[key] = sums.get(key, 0.0) + value
        return self._families(sums)

    def ended(self, process: Hashable) -> None:
        """Keep what a process has counted that has ended."""
        for key, value in self._last.pop(process, {}).items():
            self._ended[key] = self._ended.get(key, 0.0) + value

    def _families(self, sums: Mapping[_Key, float]) -> list[Family]:
        samples: dict[str, list[Any]] = {name: [] for name in self._known}
        for (sample, labels), value in sorted(sums.items()):
            samples[self._names[sample]].append([sample, dict(labels), value])
        return [[name, *self._known[name], samples[name]] for name in self._known]
