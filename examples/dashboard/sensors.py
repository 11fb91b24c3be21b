"""Fifty sensors, a hundred values a second, on one page: python sensors.py

Each sensor is a topic that keeps its values for five minutes. They are made up here; yours come from a machine.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall, cooperate, react
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver

from zcomm import Config, WebSocketConfig, zComm
from zcomm.config import data_directory
from zcomm.errors import ConfigError
from zcomm.host import Host

HERE = Path(__file__).parent
log = Logger()

HALLS = ("north", "east", "south", "west", "yard")
#: What each hall has, with its unit, and what it is about.
MEASURED = {
    "temperature": ("°C", 21.0),
    "humidity": ("%", 48.0),
    "pressure": ("hPa", 1013.0),
    "power": ("kW", 12.0),
    "current": ("A", 18.0),
    "flow": ("l/min", 35.0),
    "level": ("cm", 140.0),
    "speed": ("1/min", 1450.0),
    "noise": ("dB", 62.0),
    "dust": ("µg/m³", 17.0),
}
SENSORS = [f"sensor:{hall}:{name}" for hall in HALLS for name in MEASURED]
#: Values of all sensors together, and seconds for which they are kept.
RATE = 100
KEPT = 300


def value(sensor: str, at: float) -> dict[str, Any]:
    """What a sensor measures at a time: a slow wave and a little noise."""
    number = SENSORS.index(sensor)
    _, middle = MEASURED[sensor.rpartition(":")[2]]
    wave = math.sin(at / (20 + number)) + 0.3 * math.sin(at / (3 + number % 7))
    noise = random.gauss(0, 0.1)
    return {"at": round(at, 2), "value": round(middle * (1 + 0.05 * (wave + noise)), 2)}


async def main(reactor: Any) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
    config = Config(
        data_dir=data_directory(os.environ),
        websocket=replace(WebSocketConfig.from_environ(os.environ), www=HERE / "www"),
    )
    comm = zComm(Host(config, reactor), config=config)
    comm.topic("sensor:{hall}:{name}", history=KEPT * RATE // len(SENSORS), keep=KEPT, publish="nobody")
    bifrost = comm.create_websocket()

    @bifrost.command("sensors")
    def sensors() -> list[dict[str, str]]:
        return [{"topic": topic, "unit": MEASURED[topic.rpartition(":")[2]][0]} for topic in SENSORS]

    def publish(sensor: str, at: float) -> None:
        comm.publish(sensor, value(sensor, at)).addErrback(lambda failure: log.failure("not published", failure))

    def past() -> Iterator[None]:
        """The five minutes before the start, so that there is something to see at once."""
        now = time.time()
        for step in range(KEPT * RATE // len(SENSORS), 0, -1):
            for sensor in SENSORS:
                publish(sensor, now - step * len(SENSORS) / RATE)
            yield

    turn = cycle(SENSORS)

    def tick(count: int) -> None:
        for _ in range(count):
            publish(next(turn), time.time())

    await cooperate(past()).whenDone()
    LoopingCall.withCount(tick).start(1 / RATE)
    try:
        await comm.start_websocket()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    except CannotListenError as error:
        raise SystemExit(f"{error}\nWEBSOCKET_PORT names another port, and 0 any free one") from None
    await comm.start_below()
    log.info("`zcomm url` prints a link to the page that signs you in")
    await Deferred()


if __name__ == "__main__":
    react(main)
