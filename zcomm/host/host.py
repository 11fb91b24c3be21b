"""The hosts: responders to the commands that touch data.

``twistd zcomm`` brings its own small host, :class:`Host`, with a database. A program of zCLI's brings
itself or a walker; the responders here call it in a worker thread, because a zCLI blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import Logger

from zcomm.commands.crud import NEEDED, StoreCrud, audience_of
from zcomm.config import Config, make_data_directory, read_text
from zcomm.data.drivers import require_driver
from zcomm.data.schema import Schema, demo_schema, load_schema
from zcomm.data.store import Store
from zcomm.errors import Invalid, PermissionDenied, Unavailable
from zcomm.interfaces import ACTIONS, Client, Outcome, Permissions, Request
from zcomm.runtime.deferreds import Waiters
from zcomm.runtime.files import make_private_file
from zcomm.runtime.workers import Workers

__all__ = ["Host", "HostCrud", "HostDispatcher", "schema_of"]


def schema_of(config: Config) -> Schema:
    """The schema of the configuration's files, or the demo schema.

    :raises ConfigError: naming the file, and what in it cannot be used.
    """
    if not config.schemas:
        return demo_schema()
    schema = load_schema(read_text(config.schemas[0], "--schema"), str(config.schemas[0]))
    for path in config.schemas[1:]:
        schema = schema.merge(load_schema(read_text(path, "--schema"), str(path)))
    return schema


class Host(Service):
    """The host of ``twistd zcomm``: a session, a logger, and data in a database.

    :ivar session: as a zCLI has it.
    :ivar logger: a :mod:`logging` logger.
    :ivar schema: its models.
    :ivar data: the store, whose ``handle_request`` blocks as zData's does; ``None`` until it is known
        where a managed database is.
    """

    name = "host"
    _log = Logger()

    def __init__(self, config: Config, reactor: Any):
        self.session: dict[str, Any] = {}
        self.logger = logging.getLogger("zcomm")
        self.data: Store | None = None
        make_data_directory(config.data_dir)
        self._config = config
        self._reactor = reactor
        self.schema = schema_of(config)
        self._workers = Workers(name="zcomm-data", reactor=reactor)
        self._has_data = False
        self._waiting: Waiters[None] = Waiters()
        if not config.database:
            # Others may pass the data directory of root. What is wrong with the place, SQLite says.
            with suppress(OSError):
                make_private_file(config.data_dir / "zcomm.sqlite3")
        if config.database_service is None:
            self._open(config.database_url)

    def _open(self, url: str) -> None:
        if self.data is None:
            self.data = Store(url, self.schema, self._workers, row_cap=self._config.websocket.limits.read_rows)

    def check_database(self, url: str) -> None:
        """Fail where data could not be kept in a database whose URL begins as ``url``.

        :raises ConfigError: for one that zComm does not speak to, and for a driver that is not installed.
        """
        require_driver(url)

    @inlineCallbacks
    def start_data(self, url: str | None = None) -> Any:
        """Connect to the database, make the tables that are missing.

        :param url: where it is, when the configuration could not tell.
        :returns: a Deferred that fires when commands can use it, and fails with
            :class:`~zcomm.errors.ConfigError` or :class:`~zcomm.errors.Unavailable`.
        """
        self._workers.start()
        if url is not None:
            self._open(url)
        if self.data is None:
            raise Unavailable("It is not known yet where the database is")
        yield self.data.start()
        self._has_data = True
        self._waiting.fire(None)

    def when_data(self) -> Deferred[None]:
        """Fires when the database can be used; fails with :class:`~zcomm.errors.Unavailable` at shutdown."""
        if self._has_data:
            return succeed(None)
        return self._waiting.add()

    def check(self) -> Deferred[bool]:
        """Fires with whether the database answers."""
        return self.data.check() if self._has_data and self.data is not None else succeed(False)

    @inlineCallbacks
    def stopService(self) -> Any:
        """Let running queries end and close the connections; fires when both are done."""
        super().stopService()
        self._has_data = False
        self._waiting.fail(Unavailable("The server is shutting down"))
        if self.data is not None:
            yield self.data.stop()
        yield self._workers.stop()

    def crud(self, permissions: Permissions) -> WaitingStoreCrud:
        """The responder of CRUD commands on this host's data."""
        return WaitingStoreCrud(self, permissions)


class WaitingStoreCrud:
    """CRUD on a host's own store; commands that come before it is there wait for it, within their time limit."""

    def __init__(self, host: Host, permissions: Permissions):
        self._host = host
        self._permissions = permissions
        self._crud: StoreCrud | None = None

    def matches(self, key: str) -> bool:
        """Whether ``key`` names an action and a model."""
        return _is_crud(key)

    def respond(self, request: Request, client: Client) -> Any:
        """Answer ``request``; see :class:`zcomm.commands.crud.StoreCrud`."""
        if self._crud is None:
            return self._host.when_data().addCallback(self._begin, request, client)
        return self._crud.respond(request, client)

    def _begin(self, _: None, request: Request, client: Client) -> Any:
        if self._crud is None:
            if self._host.data is None:
                raise Unavailable("It is not known yet where the database is")
            self._crud = StoreCrud(self._host.data, self._permissions)
        return self._crud.respond(request, client)


class HostCrud:
    """CRUD through a zCLI's ``data.handle_request``, which blocks.

    :param handle_request: takes ``{action, model, ...}`` and returns the result.
    """

    def __init__(self, handle_request: Callable[[dict[str, Any]], Any], permissions: Permissions, workers: Workers):
        self._handle_request = handle_request
        self._permissions = permissions
        self._workers = workers

    def matches(self, key: str) -> bool:
        """Whether ``key`` names an action and a model."""
        return _is_crud(key)

    def respond(self, request: Request, client: Client) -> Deferred[Outcome]:
        """Hand the request to the host; an update or delete without a filter is refused before it gets there."""
        action, _, model = request.key.partition("_")
        horizontal = request.horizontal
        if not isinstance(horizontal, dict):
            raise Invalid('zHorizontal must be an object such as {"action": …, "model": …}')
        if horizontal.get("action", action) != action or horizontal.get("model", model) != model:
            raise Invalid("zKey does not match action and model")
        allows = self._permissions.allows
        if not all(allows(client.identity, right, "model", model) for right in NEEDED[action]):
            raise PermissionDenied
        if action in ("update", "delete") and not (
            horizontal.get("where") or horizontal.get("filters") or horizontal.get("all") is True
        ):
            raise Invalid(f'Refusing to {action} without a filter; name the rows in where, or say "all": true')
        rows = self._permissions.rows(client.identity, model)
        wanted = _confined({**horizontal, "action": action, "model": model}, rows)
        running = self._workers.run(client.id, self._handle_request, wanted)
        return running.addCallback(
            lambda result: Outcome(result, changed=action != "read", audience=audience_of(action, model, result))
        )


def _confined(wanted: dict[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """The request ``wanted``, of no other rows than those that the policy grants.

    :raises PermissionDenied: where a host, whose filters zComm does not know, could be led to others.
    """
    if not rows:
        return wanted
    for part in ("where", "filters", "values"):
        given = wanted.get(part)
        if given is None:
            continue
        if not isinstance(given, dict) or any(name in given and given[name] != value for name, value in rows.items()):
            raise PermissionDenied
    action = wanted["action"]
    if action == "upsert" or "filters" in wanted and "where" in wanted:
        raise PermissionDenied
    if action == "create":
        return {**wanted, "values": {**(wanted.get("values") or {}), **rows}}
    part = "filters" if "filters" in wanted else "where"
    wanted.pop("all", None)
    return {**wanted, part: {**(wanted.get(part) or {}), **rows}}


class HostDispatcher:
    """Every command that is not registered, through a zCLI's own dispatcher, which blocks.

    :param dispatch: called as ``dispatch(zKey, zHorizontal, walker)``.
    """

    def __init__(
        self, dispatch: Callable[[str, Any, Any], Any], walker: Any, permissions: Permissions, workers: Workers
    ):
        self._dispatch = dispatch
        self._walker = walker
        self._permissions = permissions
        self._workers = workers

    def __call__(self, request: Request, client: Client) -> Deferred[Any]:
        """Hand the request to the host."""
        if not self._permissions.allows(client.identity, "use", "command", request.key):
            raise PermissionDenied
        return self._workers.run(client.id, self._dispatch, request.key, request.horizontal, self._walker)


def _is_crud(key: str) -> bool:
    action, underscore, model = key.partition("_")
    return bool(underscore and model) and action in ACTIONS
