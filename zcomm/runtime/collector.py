"""Python's collector of garbage, kept off work that makes many objects which live for a moment."""

from __future__ import annotations

import gc

__all__ = ["Collector"]


class Collector:
    """Holds the collector back for one piece of work at a time.

    While that goes on the collector would walk what it has made, time after time, and take what lives to its end for
    lasting; after some of it, all objects there are, which are many. By itself nearly all of it goes with the work.
    """

    def __init__(self) -> None:
        self._is_held = False

    def hold(self) -> None:
        """Have nothing collected until :meth:`release`; others hold it back as well, or not at all."""
        if gc.isenabled():
            self._is_held = True
            gc.disable()

    def release(self) -> None:
        """Let it go on. Harmless where it is not held."""
        if self._is_held:
            self._is_held = False
            gc.enable()
