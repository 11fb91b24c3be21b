"""The hosts: responders to the commands that touch data.

``twistd zcomm`` brings its own small host, :class:`Host`, with a database. A program of zCLI's brings
itself or a walker; the responders here call it in a worker thread, because a zCLI blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Mapping
from contextlib import suppress
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import Logger

from zcomm.auth.policy import Policy
from zcomm.bifrost.messages import written
from zcomm.budget.budgets import Budgets
from zcomm.budget.written import Written
from zcomm.commands.crud import NEEDED, StoreCrud, audience_of, is_count
from zcomm.commands.memberships import Memberships
from zcomm.config import Config, make_data_directory, read_text
from zcomm.data.drivers import require_driver
from zcomm.data.drivers.driver import Fault
from zcomm.data.requests import parse_command
from zcomm.data.schema import Schema, demo_schema, load_schema
from zcomm.data.store import Store
from zcomm.engines.parts import Members
from zcomm.errors import PermissionDenied, Unavailable
from zcomm.host.contract import can_be_cut, check_call, checked_answer, checked_result, host_request, shown
from zcomm.host.line import Runner
from zcomm.host.neighbours import Neighbours, own_name
from zcomm.interfaces import (
    ACTIONS,
    Among,
    Broadcast,
    Client,
    FieldRights,
    Identity,
    IEngine,
    LiveCounts,
    Outcome,
    Permissions,
    Request,
    field_rights,
    owner_of,
)
from zcomm.live.live import LiveQueries
from zcomm.live.logs import open_log
from zcomm.runtime.deferreds import Waiters, following
from zcomm.runtime.files import make_private_file
from zcomm.runtime.workers import Workers

__all__ = ["Host", "HostCrud", "HostDispatcher", "HostPermissions", "schema_of"]

#: Seconds that running queries have at the stop before they are interrupted, and then before they are left.
STOP_STEP = 1.0


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
    :ivar budgets: the accounts of the users of the program.
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
        self.budgets = Budgets.on(reactor, config.websocket.limits)
        self._workers = Workers(
            name="zcomm-data", reactor=reactor, are_many=self.budgets.are_many, askers=self.budgets.askers, alike=True
        )
        #: The live queries on it; ``None`` until the database can be used.
        self.live: LiveQueries | None = None
        self._has_data = False
        self._neighbours: Neighbours | None = None
        self._waiting: Waiters[None] = Waiters()
        if not config.database:
            # Others may pass the data directory of root. What is wrong with the place, SQLite says.
            with suppress(OSError):
                make_private_file(config.data_dir / "zcomm.sqlite3")
        if config.database_service is None:
            self._open(config.database_url)

    def _open(self, url: str) -> None:
        if self.data is None:
            self.data = Store(
                url,
                self.schema,
                self._workers,
                row_cap=self._config.websocket.limits.read_rows,
                budgets=self.budgets,
                # A service is ours; what the shell says of PostgreSQL is about another one.
                alone=self._config.database_service is not None,
            )

    def move_data(self, url: str) -> None:
        """Go on with the data at ``url``: there the managed database is now."""
        if self.data is not None:
            self.data.move(url)

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
            self.move_data(url)
        if self.data is None:
            raise Unavailable("It is not known yet where the database is")
        yield self.data.start()
        limits = self._config.websocket.limits
        self.live = LiveQueries(self.data, open_log(self.data), self._reactor, self.budgets, limits)
        yield self.live.start()
        self._has_data = True
        self._waiting.fire(None)

    def meet(self, engine: IEngine) -> None:
        """Look from now on who else uses the database and does not share ``engine``; the log tells of them."""
        if self._has_data and self._neighbours is None and self.data is not None and not self.data.is_alone:
            self._neighbours = Neighbours(self.data, engine, self._reactor)
            self._neighbours.start()

    @inlineCallbacks
    def join(self, engine: Any) -> Any:
        """Say to those who share ``engine`` which database this is; a Deferred that fails with
        :class:`~zcomm.errors.ConfigError` where one of them has its rows in another."""
        join = getattr(engine, "join", None)
        if join is None or self.data is None:
            return
        try:
            database = yield self.data.identity()
        except Fault:
            # It has just answered, and is away again.
            return
        if database:
            yield join(database, own_name())

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
        """Close the connections, and let running queries end, within two seconds: what still runs then in a thread is
        left to it, and nothing of it is acknowledged."""
        super().stopService()
        self._has_data = False
        self._waiting.fail(Unavailable("The server is shutting down"))
        neighbours, self._neighbours = self._neighbours, None
        if neighbours is not None:
            neighbours.stop()
        live, self.live = self.live, None
        if live is not None:
            yield self._soon(live.stop())
        if self.data is not None:
            yield self.data.stop()
        ended = self._workers.stop()
        if not (yield self._soon(ended)) and self.data is not None:
            self.data.interrupt()
            yield self._soon(ended)

    def _soon(self, ended: Deferred[None]) -> Deferred[bool]:
        """A Deferred of whether ``ended`` has fired within :data:`STOP_STEP`."""
        waiting = following(ended).addCallback(lambda _: True)
        return waiting.addTimeout(STOP_STEP, self._reactor).addErrback(lambda _: False)

    def members(self, message: Broadcast, wanted: Mapping[str, Collection[Among]]) -> Deferred[Members]:
        """A Deferred of whose the rows are that a broadcast tells of; see :class:`zcomm.commands.memberships`."""
        if self.data is None:
            return succeed({})
        return Memberships(self.data)(message, wanted)

    def respond_live(self, request: Request, client: Client) -> Any:
        """Answer ``zLive``, and ``zUnsubscribe`` of a query; see :class:`zcomm.live.live.LiveQueries`."""
        if not self._has_data:
            # Which tables can be watched is not known before.
            return self.when_data().addCallback(lambda _: self._live_respond(request, client))
        return self._live_respond(request, client)

    def count_live(self) -> LiveCounts | None:
        """The numbers of all live queries; ``None`` without a database."""
        return None if self.live is None else self.live.counts()

    def judge_live(self) -> None:
        """Judge all live queries by the rights of now."""
        if self.live is not None:
            self.live.judge()

    def _live_respond(self, request: Request, client: Client) -> Any:
        if self.live is None:
            raise Unavailable("The server is shutting down")
        return self.live.respond(request, client)

    def crud(self, permissions: Permissions, is_heard: Callable[[], bool]) -> WaitingStoreCrud:
        """The responder of CRUD commands on this host's data; see :class:`zcomm.commands.crud.StoreCrud`."""
        return WaitingStoreCrud(self, permissions, is_heard)


class WaitingStoreCrud:
    """CRUD on a host's own store; commands that come before it is there wait for it, within their time limit."""

    def __init__(self, host: Host, permissions: Permissions, is_heard: Callable[[], bool]):
        self._host = host
        self._permissions = permissions
        self._is_heard = is_heard
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
            self._crud = StoreCrud(self._host.data, self._permissions, self._is_heard)
        return self._crud.respond(request, client)


class HostCrud:
    """CRUD through a zCLI's ``data.handle_request``, which blocks.

    :param data: answers the requests (:class:`zcomm.interfaces.IHostData`); what it declares counts.
    :param line: where it is called.
    """

    def __init__(self, data: Any, permissions: Permissions, line: Runner):
        self._handle_request: Callable[[dict[str, Any]], Any] = data.handle_request
        self._takes_filters = getattr(data, "zcomm_filters", None) is True
        self._permissions = permissions
        self._line = line

    def matches(self, key: str) -> bool:
        """Whether ``key`` names an action and a model."""
        return _is_crud(key)

    def respond(self, request: Request, client: Client) -> Deferred[Outcome]:
        """Hand the request to the host, as far as it has said that it can; see :mod:`zcomm.host.contract`."""
        action, _, model = request.key.partition("_")
        permissions, identity = self._permissions, client.identity
        if not all(permissions.allows(identity, right, "model", model) for right in NEEDED[action]):
            raise PermissionDenied
        # A message without zHorizontal has the key in its place, which says all of a read.
        horizontal = {} if action == "read" and request.horizontal == request.key else request.horizontal
        command = parse_command(horizontal, action, model)
        rows = permissions.rows(identity, model)
        fields = field_rights(permissions, identity, model)
        wanted = host_request(command, rows, fields, takes_filters=self._takes_filters)

        # From whoever may hear of it.
        hidden = permissions.hidden_fields(model) if isinstance(permissions, HostPermissions) else fields.hide
        changed = action != "read"

        def ask() -> Outcome:
            answer = checked_answer(self._handle_request(wanted))
            audience = audience_of(action, model, answer)
            result = written(answer)
            if not hidden or is_count(action, answer):
                return Outcome(result, changed, audience)
            is_known = can_be_cut(answer, hidden)
            if not fields.hide:
                return Outcome(result, changed, audience, is_known=is_known)
            # Of the others each hears what it may see itself.
            told = {"result": msgspec.Raw(result.json()) if isinstance(result, Written) else result}
            return Outcome(written(shown(answer, fields.hide)), changed, audience, is_known=is_known, told=told)

        return self._line.run(owner_of(client), ask)


class HostPermissions:
    """The rights that a policy grants where a host answers: less than where zComm does, which knows its own commands.

    One rule for whoever asks, for the command and for whoever hears of its result: ``"*"`` grants no command of the
    host's, and no model that may be, to the host's database, one that stands in the file for that role.

    :ivar policy: what it grants.
    :ivar registered: the commands of the server itself.
    """

    registered: Container[str] = ()

    def __init__(self, policy: Policy):
        self.policy = policy

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        """Whether the identity may do ``action`` to the ``name`` of that ``kind``."""
        policy = self.policy
        if not policy.allows(identity, action, kind, name):
            return False
        if kind == "model":
            return not policy.names_alike(name, identity)
        return kind != "command" or not self.is_of_host(name) or policy.names_command(name, identity)

    def rows(self, identity: Identity, model: str) -> Mapping[str, Any]:
        """The rows of ``model`` that its rights reach, as :class:`~zcomm.interfaces.Permissions` has it."""
        return self.policy.rows(identity, model)

    def fields(self, identity: Identity, model: str) -> FieldRights:
        """The fields of ``model`` that are hidden from the identity, or read-only for it; likewise."""
        return self.policy.fields(identity, model)

    def hidden_fields(self, model: str) -> frozenset[str]:
        """The fields of ``model`` that are hidden from some role."""
        return self.policy.hidden_fields(model)

    def goes_by_membership(self, model: str) -> bool:
        """Whether some role reaches rows by a membership: never those of a host."""
        return False

    def row_fields(self, model: str) -> frozenset[str]:
        """The fields that :meth:`rows` may name."""
        return self.policy.row_fields(model)

    def topics(self, identity: Identity) -> Mapping[str, frozenset[str]]:
        """The actions on topics that are granted, by pattern."""
        return self.policy.topics(identity)

    def is_of_host(self, key: str) -> bool:
        """Whether the host is asked for the command ``key``: one that the policy names for some role, and that the
        server has none of its own for."""
        return key not in self.registered and self.policy.names_command(key)


class HostDispatcher:
    """Commands through a zCLI's own dispatcher, which blocks: those that a policy file names, and no others.

    A zCLI evaluates what stands in the parentheses of some commands, and follows objects to whatever they name. So it
    gets the key, or the text ``KEY(…)`` of that key and of nothing else (:func:`zcomm.host.contract.check_call`), and
    it gets them only where somebody wrote that this is wanted.

    :param dispatch: called as ``dispatch(zKey, zHorizontal, walker)``.
    :param line: where it is called.
    :param refuse: answers who may not use a command (:meth:`zcomm.bifrost.dispatch.Dispatcher.refuse`).
    """

    def __init__(
        self,
        dispatch: Callable[[str, Any, Any], Any],
        walker: Any,
        permissions: HostPermissions,
        line: Runner,
        refuse: Callable[[Request, Client, Permissions], Any],
    ):
        self._dispatch = dispatch
        self._walker = walker
        self._permissions = permissions
        self._line = line
        self._refuse = refuse

    def matches(self, key: str) -> bool:
        """Whether the policy names ``key`` for some role."""
        return self._permissions.is_of_host(key)

    def respond(self, request: Request, client: Client) -> Any:
        """Hand the command to the host, where it is granted to the client by name."""
        key, horizontal = request.key, request.horizontal
        if not self._permissions.allows(client.identity, "use", "command", key):
            # As if it were not there: to whom a star grants what is registered, it is a command that is not.
            return self._refuse(request, client, self._permissions.policy)
        check_call(key, horizontal)
        return self._line.run(
            owner_of(client), lambda: written(checked_result(self._dispatch(key, horizontal, self._walker)))
        )


def _is_crud(key: str) -> bool:
    action, underscore, model = key.partition("_")
    return bool(underscore and model) and action in ACTIONS
