"""A service under watch: asked whether it lives, its log rotated, its life tied to ours."""

from __future__ import annotations

import signal
from typing import Any

from twisted.python.failure import Failure

from zcomm.services.declaration import Probe, ServiceDeclaration
from zcomm.services.status import Health, ServiceState
from zcomm.services.supervision.environment import Context
from zcomm.services.supervision.guarding import Guardian
from zcomm.services.supervision.health import Watch
from zcomm.services.supervision.local import LocalService
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import ManagedProcess, ServerProcess

__all__ = ["Watched"]


class Watched(LocalService):
    """A service with what happens to it while it runs."""

    def __init__(self, context: Context, declaration: ServiceDeclaration):
        super().__init__(context, declaration)
        self._watch: Watch | None = None
        self._guardian: Guardian | None = None
        self._rotating = False

    def hung(self) -> None:
        """Called when the server answers no more."""
        raise NotImplementedError

    def guard(self, process: ServerProcess) -> None:
        """Tie the life of the server to ours, where the kernel does not do it already."""
        tied = isinstance(process, ManagedProcess) and self.context.tools.watches_parent
        if self.context.lifetime == "session" and not tied:
            self._guardian = Guardian.beside(self.context.reactor, process.pid, self.declaration.stop)

    def begin_watch(self) -> None:
        """Ask it from now on."""
        probe = self.declaration.alive or Probe("none", every=5.0)
        self._watch = Watch(
            self.context.reactor,
            probe,
            self.context.misses,
            lambda: self.ask(probe.timeout),
            self._heard,
            self._missed,
            self._resume,
            self.hung,
            self._rotate,
        )
        self._watch.start()

    def unwatch(self) -> None:
        """Ask it no more."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def dismiss_guardian(self) -> None:
        """The server has ended, or is to live on."""
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None

    def _heard(self, reply: Reply) -> None:
        self.heard(reply)
        if self.state is ServiceState.RUNNING:
            self.say(reply.detail, reply.health)

    def say(self, detail: str, health: Health) -> None:
        """Take the health of a running server; one that answers well may still have something wrong."""
        reason, fix = self.warning
        if health is Health.HEALTHY and reason:
            self.become(ServiceState.RUNNING, reason, fix, Health.DEGRADED)
        else:
            self.become(ServiceState.RUNNING, detail, "", health)

    async def look_closer(self) -> None:
        """Take the time, now that it runs, for what a start should not wait for."""
        process = self.process
        await self.inspect()
        if self.process is process and self.state is ServiceState.RUNNING and self.warning[0]:
            self.say("", self.health)

    def _missed(self, count: int) -> None:
        if self.state is ServiceState.RUNNING:
            reason = f"no answer to {count} questions in a row"
            self.become(ServiceState.RUNNING, reason, "", Health.UNRESPONSIVE)

    def _resume(self) -> None:
        if self.process is not None:
            self.process.signal(signal.SIGCONT)

    def _rotate(self) -> None:
        if self._rotating or not self.home.log.due():
            return
        self._rotating = True

        def done(result: Any) -> None:
            self._rotating = False
            if isinstance(result, Failure):
                self.log.failure("{name}: its log cannot be rotated", result, name=self.name)

        self.in_thread(self.home.log.rotate).addBoth(done)
