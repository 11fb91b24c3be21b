"""The services under a reactor that runs in a background thread, where no SIGCHLD can be heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.localservers import processes_in

SCRIPT = """
import json, os, signal, sys, threading
from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread
from zcomm.services.manager import ServiceManager

thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False})
thread.start()
call = lambda function, *given, **named: blockingCallFromThread(reactor, function, *given, **named)
manager = call(ServiceManager, sys.argv[1], {"PATH": os.environ["PATH"]}, reactor, space=(0, 0), reserve_after=None)
told = [call(manager.start, "redis", port="auto")]
first = call(manager.status, "redis")
os.kill(first["pid"], signal.SIGKILL)
again = threading.Event()
call(lambda: manager.subscribe(lambda name, status: status["running"] and again.set()))
told.append(again.wait(60))
told.append(call(manager.status, "redis")["pid"] != first["pid"])
told.append(call(manager.stop, "redis"))
call(manager.stopService)
reactor.callFromThread(reactor.stop)
thread.join()
print(json.dumps(told))
"""


def test_a_reactor_in_a_background_thread(place: Path):
    """Starts, notices a kill, restarts and stops, without the signals of the main thread."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place / "home")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0 and json.loads(done.stdout) == [True] * 4, done.stderr
    assert processes_in(place) == []
