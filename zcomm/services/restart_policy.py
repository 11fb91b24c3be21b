"""The policy of restarts: when a server that ended is started again. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["RestartPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Exponential backoff with a limit.

    The first failure of a server that worked is mended at once: waiting gains nothing there. Each
    further one waits ``base * 2**n`` seconds, spread by ``jitter`` so that several servers that
    fell together do not come back together.

    :ivar base: seconds before the second attempt.
    :ivar cap: the longest wait in seconds.
    :ivar jitter: the share of a wait that is left to chance, 0 to 1.
    :ivar attempts: this many failures within ``window`` seconds and no further attempt is made.
    :ivar healthy: seconds of good health after which earlier failures are forgotten.
    """

    base: float = 0.1
    cap: float = 30.0
    jitter: float = 0.2
    attempts: int = 5
    window: float = 60.0
    healthy: float = 60.0

    def remembered(self, failures: Sequence[float], ready_at: float | None, now: float) -> tuple[float, ...]:
        """The failures that count when another happens ``now``, that one included.

        :param failures: the times of those before, on a monotonic clock.
        :param ready_at: when this run became ready, ``None`` if it never was.
        """
        if ready_at is not None and now - ready_at >= self.healthy:
            return (now,)
        # One more than the window needs is kept, so that the waits keep growing up to the cap.
        return (*failures[-63:], now)

    def delay(self, failures: Sequence[float], chance: Callable[[], float]) -> float | None:
        """Seconds to wait after the last of ``failures``, or ``None`` to give up.

        :param chance: a number from 0 up to 1, asked at most once.
        """
        last = failures[-1]
        if sum(1 for moment in failures if last - moment <= self.window) >= self.attempts:
            return None
        if len(failures) == 1:
            return 0.0
        wait = min(self.cap, self.base * 2.0 ** (len(failures) - 2))
        return wait * (1.0 - self.jitter * chance())
