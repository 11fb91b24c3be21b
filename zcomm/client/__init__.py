"""The Python client: the JavaScript client's methods through Deferreds.

::

    from zcomm.client import connect

    client = yield connect("ws://127.0.0.1:56891", token)
    user = yield client.create("Users", {"name": "Alice", "email": "alice@example.com"})

:mod:`zcomm.client.threaded` has the same as plain calls.
"""

from zcomm.client.client import Client, connect
from zcomm.client.live import Live
from zcomm.client.members import PresenceNews
from zcomm.client.rows import Changed, LiveChange
from zcomm.client.subscription import Continuity, Message, Subscribed, Unsubscribed
from zcomm.client.topics import History, Position, Presence, Published, Topic

__all__ = [
    "Changed",
    "Client",
    "Continuity",
    "History",
    "Live",
    "LiveChange",
    "Message",
    "Position",
    "Presence",
    "PresenceNews",
    "Published",
    "Subscribed",
    "Topic",
    "Unsubscribed",
    "connect",
]
