"""The Python client for programs without a reactor: each method waits for its answer and returns it."""
from __future__ import annotations

from typing import Any, Callable

from zcomm.client import client as deferred
from zcomm.reactorthread import blocking

__all__ = ["Client", "connect"]


def connect(url: str, token: str | None = None, **options: Any) -> Client:
    """Connect, and wait until the server has let us in; see :func:`zcomm.client.connect`.

    :raises ConnectionLost: when it does not let us in.
    :raises OSError: when nothing listens there.
    """
    return Client(blocking(lambda: deferred.connect(url, token, **options)))


class Client:
    """A connected client; made by :func:`connect`. Listeners are called in the reactor's thread and must not block."""

    def __init__(self, client: deferred.Client):
        self._client = client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.disconnect()

    @property
    def state(self) -> str:
        """``connecting``, ``connected``, ``reconnecting`` or ``closed``."""
        return self._client.state

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Each public method of the Deferred client, waited for.
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._client, name)
        return lambda *args, **kwargs: blocking(method, *args, **kwargs)

    def disconnect(self) -> None:
        """Close for good."""
        blocking(self._client.disconnect)
