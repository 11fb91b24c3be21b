"""Notices: that something changed, in the place of a result that is too much to be told to others in full."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from zcomm.interfaces import Audience, Broadcast, Client

__all__ = ["Notices"]

#: Seconds within which what says the same is said once.
INTERVAL = 0.1
#: The most that waits to be said: audiences of rows, which are as large as the rows, and bytes of those.
MOST, MOST_BYTES = 100, 1024 * 1024


class _Said:
    """A notice that was sent within the last interval, and who is to hear it again."""

    __slots__ = ("audiences", "payload", "sender", "size")

    def __init__(self, payload: bytes):
        self.payload = payload
        self.clear()

    def clear(self) -> None:
        """Forget who waits."""
        self.audiences: list[Audience] = []
        self.sender: Client | None = None
        self.size = 0


class Notices:
    """Sends notices: the first at once, more of the same together at the end of the interval; so the last change is
    always followed by one.

    :param clock: for the interval.
    :param tell: sends a broadcast.
    """

    def __init__(self, clock: IReactorTime, tell: Callable[[Broadcast], object]):
        self._clock = clock
        self._tell = tell
        self._lately: dict[tuple[Hashable, bytes], _Said] = {}
        self._timer: IDelayedCall | None = None

    def say(self, owner: Hashable, payload: bytes, audience: Audience, sender: Client, size: int) -> None:
        """Tell ``audience``, but for the sender, that there is something to be read anew.

        :param owner: the user who has changed it; what several connections of one user say is put together.
        :param payload: the notice.
        :param size: bytes of what is not told, and at most of its audience.
        """
        said = self._lately.get((owner, payload))
        if said is None:
            self._lately[owner, payload] = _Said(payload)
            self._tell(Broadcast(payload, audience, sender, is_result=True, is_notice=True))
            if self._timer is None:
                self._timer = self._clock.callLater(INTERVAL, self._again)
            return
        if not said.audiences:
            said.sender = sender
        elif said.sender is not sender:
            # Each of them is to hear of the other.
            said.sender = None
        if audience.row is not None or audience not in said.audiences:
            said.audiences.append(audience)
            said.size += 0 if audience.row is None else size
        if len(said.audiences) >= MOST or said.size >= MOST_BYTES:
            self._repeat(said)

    def stop(self) -> None:
        """Say no more, and forget what waits."""
        self._lately.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._timer = None
        for key, said in list(self._lately.items()):
            if said.audiences:
                self._repeat(said)
            else:
                del self._lately[key]
        if self._lately:
            self._timer = self._clock.callLater(INTERVAL, self._again)

    def _repeat(self, said: _Said) -> None:
        audiences, sender = said.audiences, said.sender
        said.clear()
        for audience in audiences:
            self._tell(Broadcast(said.payload, audience, sender, is_result=True, is_notice=True))
