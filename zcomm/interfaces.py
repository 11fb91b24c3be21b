"""The vocabulary that the parts of zComm share: identities, requests, outcomes, audiences, rights and hosts.

Values here are frozen and do no I/O. What a *user* may implement is a zope interface; what only
zComm itself passes around is a value or a typing protocol.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from math import isfinite
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from zcomm.peers import block_of

__all__ = [
    "ACTIONS",
    "ANONYMOUS",
    "Among",
    "Audience",
    "Broadcast",
    "Change",
    "Client",
    "EVERYBODY",
    "FieldRights",
    "ICommandDispatcher",
    "IEngine",
    "IHost",
    "IHostData",
    "IHostUsers",
    "IWalker",
    "Identity",
    "Kept",
    "KeptMessage",
    "Listener",
    "LiveCounts",
    "MAX_REQUEST_ID",
    "MIN_REQUEST_ID",
    "Members",
    "NodeListener",
    "NO_FIELD_RIGHTS",
    "Outcome",
    "Permissions",
    "Position",
    "RIGHTS",
    "Request",
    "Slice",
    "TopicListener",
    "exactly",
    "Rows",
    "field_rights",
    "goes_by_membership",
    "owner_of",
    "row_fields",
]

#: The actions on the rows of a model, as commands and policies name them.
ACTIONS = ("create", "read", "update", "delete", "upsert")
#: The actions that permissions are asked for, by the kind of what they are done to. Upserting has no right of its own:
#: it takes those to create and to update.
RIGHTS = {
    "model": ("create", "read", "update", "delete"),
    "function": ("call",),
    "command": ("use",),
    "file": ("open",),
    "page": ("visit",),
    "admin": ("use",),
    "topic": ("subscribe", "publish", "presence", "history"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """The user of a client, as its token proved.

    :ivar name: the user's name; ``anonymous`` when authentication is off.
    :ivar role: what the policy file grants rights to; ``guest`` when authentication is off.
    :ivar token_id: which token proved it, so that revoking that token can end the connection.
    """

    name: str
    role: str
    token_id: str = ""


#: Everybody, when authentication is off.
ANONYMOUS = Identity(name="anonymous", role="guest")


#: The integers that are a ``_requestId``: those of 64 bits, which every language can hold.
MIN_REQUEST_ID, MAX_REQUEST_ID = -(2**63), 2**63 - 1


class Request(
    msgspec.Struct,
    frozen=True,
    rename={
        "key": "zKey",
        "horizontal": "zHorizontal",
        "request_id": "_requestId",
    },
):
    """One well-formed command of a client (docs/protocol.rst, "Requests").

    It is the very type the JSON decoder fills, so that a command costs one object.

    :ivar key: ``zKey``.
    :ivar horizontal: ``zHorizontal``, any JSON value; the key itself when the message had none.
    :ivar request_id: ``_requestId``, or ``None`` when the caller wants no correlation.
    """

    key: str
    horizontal: Any
    request_id: Annotated[int, msgspec.Meta(ge=MIN_REQUEST_ID, le=MAX_REQUEST_ID)] | str | None = None


class Client(Protocol):
    """One admitted connection, as commands see it."""

    id: int
    identity: Identity
    peer: str

    @property
    def place(self) -> str:
        """The page zLink took this client to last; empty at first."""

    def visited(self, path: str) -> None:
        """Remember that the client is at the page ``path`` from now on."""

    def send(self, message: Any) -> None:
        """Queue ``message`` for this client alone: a ``str`` as it is, anything else as JSON."""

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake.

        :param code: one that may be sent: 1000 to 1003, 1007 to 1014, or 3000 to 4999; any other is a ``ValueError``.
        :param reason: cut to the 123 bytes of UTF-8 that a close frame has room for.
        """


class Anybody(NamedTuple):
    """A client without authentication, as an owner of work.

    :ivar id: its number at its server.
    :ivar address: the addresses that share their limits with its own.
    """

    id: int
    address: str


def owner_of(client: Client) -> Hashable:
    """Whose the work of ``client`` is, where threads are shared out: its user's, however many connections that user
    has; its own without authentication, where nobody can tell users apart."""
    return Anybody(client.id, block_of(client.peer)) if client.identity is ANONYMOUS else client.identity.name


class Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows of a model that a broadcast tells of, by what decides who hears of which of them.

    :ivar key: the fields of the primary key, which names each of them.
    :ivar changed: the fields that were set; empty where the rows were removed.
    :ivar fields: those whose values are known here, of which the rights to rows are judged.
    :ivar values: of each row, in the order of the broadcast, the values of ``fields`` in their JSON form. Rows that
        were changed are meant as they are now, those that were removed as they were.
    :raises ValueError: naming what is wrong, as of an :class:`Audience`.
    """

    key: tuple[str, ...]
    changed: tuple[str, ...]
    fields: tuple[str, ...]
    values: tuple[tuple[str | int | float | bool | None, ...], ...]

    def __post_init__(self) -> None:
        for part in ("key", "changed", "fields"):
            names = getattr(self, part)
            if type(names) is not tuple or not all(map(_is_name, names)) or len({*names}) < len(names):
                raise ValueError(f"rows: {part} are names of fields, each once, not {names!r:.60}")
        if type(self.values) is not tuple:
            raise ValueError(f"rows: values are those of each row, not {self.values!r:.60}")
        for row in self.values:
            if type(row) is not tuple or len(row) != len(self.fields):
                raise ValueError(f"rows: of each row the values of {', '.join(self.fields)}, not {row!r:.60}")
            for field, value in zip(self.fields, row, strict=True):
                if not _is_exact(value):
                    raise ValueError(f"rows: {field:.60}: JSON does not keep {value!r:.60} as it is")

    def index(self, names: tuple[str, ...]) -> dict[tuple[Any, ...], list[int]]:
        """The places of the rows by their values of ``names``, which are known here; for :meth:`reached`."""
        columns = [self.fields.index(name) for name in names]
        found: dict[tuple[Any, ...], list[int]] = {}
        for place, row in enumerate(self.values):
            found.setdefault(exactly(row[column] for column in columns), []).append(place)
        return found

    @staticmethod
    def reached(granted: Mapping[str, Any], index: Mapping[tuple[Any, ...], list[int]]) -> list[int]:
        """The places of the rows with the values ``granted``.

        :param index: by the names of those, in their order.
        """
        try:
            return index.get(exactly(granted.values()), [])
        except TypeError:
            # No value that a row may have.
            return []

    def knows(self, granted: Mapping[str, Any]) -> bool:
        """Whether it can be told which of them a right to the rows with the values ``granted`` reaches."""
        return all(name in self.fields for name in granted)

    @classmethod
    def from_parts(cls, parts: Any) -> Rows:
        """Make one of what JSON has for it.

        :raises ValueError: for anything else.
        """
        if not isinstance(parts, dict) or parts.keys() != set(cls.__struct_fields__):
            raise ValueError(f"rows: an object of {', '.join(cls.__struct_fields__)}")
        if not all(isinstance(part, list) for part in parts.values()):
            raise ValueError("rows: each of its parts is a list")
        values = [tuple(row) if isinstance(row, list) else row for row in parts["values"]]
        return cls(**{**{name: tuple(part) for name, part in parts.items()}, "values": tuple(values)})


class Audience(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The clients that may hear of a result, as a value: each server judges it by its own permissions.

    ``Audience()`` is everybody, ``Audience("function", "total")`` those who may call that function, and
    ``Audience("model", "Notes", {"owner": "ann"})`` those who may read that row. It cannot be changed, and comes back
    from its JSON as it was. Two are equal, and have one hash, where their JSON is the same.

    :ivar kind: ``everybody``; or ``model``, ``function``, ``command``, ``file``, ``page``, ``admin`` or ``topic``, for
        those who may read, call, use, open, visit, use or subscribe to it.
    :ivar name: which one; empty for everybody.
    :ivar row: of a model, the values of the row that the result tells of, in their JSON form, as a mapping that cannot
        be changed; who may read some rows only hears of it where it is one of them. ``None`` for a result that tells
        of no row's content.
    :ivar rows: of a model, the rows that a broadcast tells of, of which each client hears those that it may read.
    :raises ValueError: naming what is wrong: a kind without a name or a name without a kind; rows of anything but a
        model; a name or field that is no ``str`` of Unicode text; a value that is no ``str``, finite ``float``, ``int``
        of 64 bits, ``bool`` or ``None``. Subclasses of these types are refused as well, for JSON does not keep them.
    """

    kind: Literal["everybody", "model", "function", "command", "file", "page", "admin", "topic"] = "everybody"
    name: str = ""
    row: Mapping[str, str | int | float | bool | None] | None = None
    rows: Rows | None = None

    def __post_init__(self) -> None:
        kind, name, row = self.kind, self.name, self.row
        if type(kind) is not str or kind not in RIGHTS and kind != "everybody":
            raise ValueError(f"kind: an audience is everybody, or of a {', '.join(RIGHTS)}, not {kind!r:.60}")
        if not _is_name(name):
            raise ValueError(f"name: must be Unicode text, as a str, not {name!r:.60}")
        if bool(name) is (kind == "everybody"):
            raise ValueError("name: an audience is everybody, or has a kind and a name")
        if self.rows is not None and (kind != "model" or row is not None or not isinstance(self.rows, Rows)):
            raise ValueError("rows: only the audience of a model has some, as zcomm.interfaces.Rows, or one row")
        if row is None:
            return
        if kind != "model":
            raise ValueError("row: only the audience of a model has one")
        if not isinstance(row, Mapping):
            raise ValueError(f"row: must map fields to values, not {row!r:.60}")
        row = dict(row)
        for field, value in row.items():
            if not _is_name(field):
                raise ValueError(f"row: a field is Unicode text, as a str, not {field!r:.60}")
            if not _is_exact(value):
                raise ValueError(f"row: {field:.60}: JSON does not keep {value!r:.60} as it is")
        msgspec.structs.force_setattr(self, "row", MappingProxyType(row))

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Audience) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither copies nor pickles are made of a read-only mapping.
        return Audience, (self.kind, self.name, None if self.row is None else dict(self.row), self.rows)

    def admits(self, identity: Identity, permissions: Permissions) -> bool:
        """Whether ``identity`` belongs to it, as ``permissions`` have it; of several rows, whether it may read one of
        them, or nobody can tell."""
        if self.kind == "everybody":
            return True
        action = "read" if self.kind == "model" else RIGHTS[self.kind][0]
        if not permissions.allows(identity, action, self.kind, self.name):
            return False
        row, rows = self.row, self.rows
        if rows is not None:
            granted = permissions.rows(identity, self.name)
            if not granted or not rows.knows(granted):
                return True
            return bool(Rows.reached(granted, rows.index(tuple(granted))))
        if row is None:
            return True
        for field, value in (permissions.rows(identity, self.name) or {}).items():
            # In Python 1 is True; in JSON, and for whoever grants rows, it is not.
            if field not in row or row[field] != value or isinstance(row[field], bool) is not isinstance(value, bool):
                return False
        return True

    def to_json(self) -> bytes:
        """Its JSON, which another process understands; the same for equal ones."""
        return _write_audience(self)

    @classmethod
    def from_json(cls, payload: bytes) -> Audience:
        """Read what :meth:`to_json` wrote.

        :raises ValueError: for anything else, a kind that is not known included.
        """
        try:
            parts = json.loads(str(payload, "utf-8"), object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no audience: {error}") from None
        # What is left out would stand for more people, so nothing is.
        if not isinstance(parts, dict) or parts.keys() != set(cls.__struct_fields__):
            raise ValueError(f"no audience: it is an object of {', '.join(cls.__struct_fields__)}")
        rows = parts["rows"]
        return cls(**{**parts, "rows": None if rows is None else Rows.from_parts(rows)})


#: A read-only mapping is written as the dictionary that it shows.
_write_audience = msgspec.json.Encoder(enc_hook=dict, order="deterministic").encode


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; two readers need not agree on one that has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def exactly(values: Iterable[Any]) -> tuple[Any, ...]:
    """``values``, equal to others where JSON has the same: in Python 1 is True."""
    return tuple([(isinstance(value, bool), value) for value in values])


def _is_name(name: Any) -> bool:
    """Whether ``name`` is Unicode text, and plain."""
    return type(name) is str and (name.isascii() or _is_text(name))


def _is_exact(value: Any) -> bool:
    """Whether JSON keeps ``value`` as it is, and it is of a type that rights to rows go by."""
    value_type = type(value)
    if value_type is str:
        return value.isascii() or _is_text(value)
    if value_type is int:
        return bool(-(2**63) <= value < 2**64)
    if value_type is float:
        return isfinite(value)
    return value is None or value_type is bool


def _is_text(text: str) -> bool:
    """Whether ``text`` has no half of a surrogate pair, for which UTF-8 has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


#: Everybody who is connected.
EVERYBODY = Audience()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A result and the clients that hear of it, which a responder may return in place of the bare result.

    :ivar result: what the caller gets.
    :ivar changed: whether something changed that others want to know (broadcast mode ``changes``).
    :ivar audience: the other clients that may see the result; those who may ask for the same when it is left out.
    :ivar announcement: further keys of the broadcast (``{"function": "total"}``).
    :ivar repeated: whether it is the result that was kept of a command done before: the others have heard of it then,
        and hear nothing now, in any mode.
    :ivar is_known: whether the result is; where something changed of which no answer could be made, or of which nobody
        can tell what it was, the others are told to read anew (``many``).
    :ivar told: what the others hear in the place of the result, by its keys in the broadcast, ``result`` among them.
    :raises TypeError: for an audience that is none.
    """

    result: Any
    changed: bool = False
    audience: Audience | None = None
    announcement: dict[str, Any] | None = None
    _: KW_ONLY
    repeated: bool = False
    is_known: bool = True
    told: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.audience is not None and not isinstance(self.audience, Audience):
            raise TypeError(f"audience: must be a zcomm.interfaces.Audience or None, not {self.audience!r:.60}")


class Broadcast(msgspec.Struct, frozen=True):
    """A message for many clients.

    :ivar payload: the message as it is sent to those who may read all that it tells; to others its parts
        (:mod:`zcomm.engines.parts`).
    :ivar audience: the clients that get it.
    :ivar sender: the client that does not, because it has a reply. It is connected in this process or nowhere, so
        between processes it does not travel.
    :ivar is_result: whether it tells of a client's command; a server with the broadcast mode ``none`` is silent of
        those, and passes on what the program says.
    :ivar is_notice: whether it says no more than that there is something to be read anew: of several that are the same,
        one is enough.
    """

    payload: bytes
    audience: Audience = EVERYBODY
    sender: Client | None = None
    is_result: bool = False
    is_notice: bool = False


class Position(NamedTuple):
    """A place among the messages of a topic.

    :ivar epoch: the numbering; where it is another one, offsets do not compare.
    :ivar offset: the number of the last message before it; 0 before the first.
    """

    epoch: str
    offset: int


class Kept(NamedTuple):
    """The messages that a topic keeps: so many, and for so many seconds after the last."""

    messages: int
    seconds: float


class KeptMessage(NamedTuple):
    """A message of a topic.

    :ivar fragment: the inside of its JSON: ``"data":…,"from":…``.
    :ivar origin: the connection that has published it (:attr:`Change.connection`); empty where none has.
    """

    offset: int
    fragment: bytes
    origin: str


class Slice(NamedTuple):
    """Some of the messages of a topic.

    :ivar position: behind the newest message there is.
    :ivar reason: why there are none; empty where they are all that was asked for.
    :ivar more: whether there are more than were asked for.
    """

    position: Position
    messages: Sequence[KeptMessage] = ()
    reason: str = ""
    more: bool = False


class Change(NamedTuple):
    """A connection that has come into a topic, has left it, or says something else of itself.

    :ivar since: the version of the topic's presence before it.
    :ivar version: the one after it.
    :ivar connection: its id, unique in all processes.
    :ivar state: what it says of itself, as JSON; ``None`` where it has left.
    :ivar before: how many connections its user had there before.
    :ivar after: how many it has there now.
    :ivar users: how many users are there now.
    :ivar connections: how many connections those have.
    :ivar is_named: whether it is among those that are named.
    """

    since: int
    version: int
    connection: str
    user: str
    state: bytes | None
    before: int
    after: int
    users: int
    connections: int
    is_named: bool = True


class LiveCounts(NamedTuple):
    """The live queries of a program in numbers.

    :ivar queries: those whose rows are kept; clients that ask the same share one.
    :ivar subscriptions: those of all clients.
    :ivar size: bytes that they take, about.
    :ivar steps: how often they have been brought up to date so far.
    :ivar events: what clients were told of that, in messages.
    """

    queries: int
    subscriptions: int
    size: int
    steps: int
    events: int


class Members(NamedTuple):
    """The members of a topic.

    :ivar version: counts the changes.
    :ivar members: states as JSON, by user and connection; ``None`` where they are too many.
    """

    version: int
    users: int
    connections: int
    members: dict[str, dict[str, bytes]] | None


class TopicListener(Protocol):
    """A node, as an engine sees it: what it has said that it listens to."""

    def message(self, topic: str, position: Position | None, fragment: bytes, origin: str, teller: Any) -> None:
        """Deliver a message. Those of a topic come in the order of their offsets, each one higher than the last, unless
        :meth:`moved` says so.

        :param position: ``None`` for a topic that keeps none. Its epoch may be another one than that of the message
            before, which is part of that numbering too then.
        :param teller: whose time it takes, where the engine knows.
        """

    def moved(self, topic: str, position: Position, reason: str) -> None:
        """Note that what follows in a topic does not follow what was delivered.

        :param position: behind the newest message there is.
        :param reason: why, as in :class:`Slice`.
        """

    def presence(self, topic: str, change: Change, teller: Any) -> None:
        """Note that somebody has come into a topic that is listened to or has gone, or says something else."""

    def presence_missed(self, topic: str) -> None:
        """Note that changes of the members of a topic may not have been heard."""

    def came_or_went(self, topic: str, change: Change) -> None:
        """Note a change of any topic that this process has brought about, and no other tells of: in all of them it is
        told once."""

    def engine_state(self, state: str) -> None:
        """Note that the engine is away for more than a moment (``degraded``), or is back (``ok``)."""


class Listener(Protocol):
    """A server, as an engine sees it."""

    @property
    def clients(self) -> int:
        """The number of its clients."""

    def tell(self, message: Broadcast) -> int:
        """Send ``message`` to those of its clients whom it is for; returns how many those are."""


class NodeListener(Protocol):
    """A process, as an engine sees it, to which others may have something to say."""

    def heard(self, node: str, message: bytes) -> None:
        """Take a message of another node."""

    def missed(self) -> None:
        """Note that messages of other nodes were lost."""


@dataclass(frozen=True, slots=True)
class FieldRights:
    """The fields of a model in which an identity has fewer rights than to the rest of it.

    :ivar hide: the fields that are not there for it: neither read nor asked about, ordered by or written.
    :ivar readonly: the fields that it may read, and may not write.
    :raises TypeError: for a text in the place of several names.
    """

    hide: frozenset[str] = frozenset()
    readonly: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for part in ("hide", "readonly"):
            names = getattr(self, part)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"{part}: must be names of fields, like frozenset({{'salary'}}), not {names!r:.60}")
            object.__setattr__(self, part, frozenset(names))


#: Those of an identity whose rights are to all fields. Whatever restricts none is this very object
#: (:func:`field_rights`).
NO_FIELD_RIGHTS = FieldRights()


class Among(msgspec.Struct, frozen=True):
    """The values of a field in rows of another model: a right to rows that goes by membership.

    :ivar model: that other model.
    :ivar field: the field of it whose values are meant.
    :ivar where: the values that the rows have in other fields, by name; those of all rows when it is empty.
    """

    model: str
    field: str
    where: tuple[tuple[str, str | int | bool], ...] = ()


class Permissions(Protocol):
    """The rights of identities. They are checked for each command and each broadcast, on the server.

    One that restricts fields as well has a method ``fields(identity, model)``, which returns :class:`FieldRights`;
    :func:`field_rights` asks it. One that knows which fields of a model :meth:`rows` may name, for whomever, says so
    with a method ``row_fields(model)``, which returns their names; of the rows of a change no others are read then
    (:func:`row_fields`).
    """

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        """Whether ``identity`` may do ``action`` to the ``name`` of that ``kind``.

        :param action: by kind: ``create``, ``read``, ``update`` or ``delete`` rows of a ``model``; ``call`` a
            ``function``; ``use`` a ``command`` or what is for those who run the server (``admin``); ``open`` a
            ``file``; ``visit`` a ``page``; ``subscribe`` to a ``topic``, ``publish`` to it, see its ``presence`` and
            read its ``history``. An upsert asks for ``create`` and for ``update``, and takes both.
        :param kind: what ``name`` names.
        :param name: a model; a function by the name that clients call; the ``zKey`` of a command that the program
            registered (``ping`` is always allowed); a file by its path; a page by its path; ``metrics`` of ``admin``; a
            topic.
        """

    def rows(self, identity: Identity, model: str) -> Mapping[str, Any]:
        """The rows of ``model`` that its rights reach: those with these values in these fields; all when empty. In the
        place of a value :class:`Among` stands for the values in rows of another model."""


def field_rights(permissions: Permissions, identity: Identity, model: str) -> FieldRights:
    """The fields of ``model`` that are hidden from ``identity`` or read-only for it, as ``permissions`` have it;
    :data:`NO_FIELD_RIGHTS` itself where there are none.

    :raises TypeError: for permissions that answer with something else: nobody would know what they hide.
    """
    fields = getattr(permissions, "fields", None)
    rights = NO_FIELD_RIGHTS if fields is None else fields(identity, model)
    if rights is NO_FIELD_RIGHTS or rights is None:
        return NO_FIELD_RIGHTS
    if not isinstance(rights, FieldRights):
        raise TypeError(f"fields: must return zcomm.interfaces.FieldRights or None, not {rights!r:.60}")
    return rights if rights.hide or rights.readonly else NO_FIELD_RIGHTS


def goes_by_membership(permissions: Permissions, model: str) -> bool:
    """Whether :meth:`Permissions.rows` of ``model`` may name :class:`Among` for somebody, as permissions tell that have
    a method ``goes_by_membership(model)``; it may, where nobody knows."""
    asked = getattr(permissions, "goes_by_membership", None)
    return True if asked is None else bool(asked(model))


def row_fields(permissions: Permissions, model: str) -> frozenset[str] | None:
    """The fields of ``model`` that :meth:`Permissions.rows` may name, as permissions tell that have a method
    ``row_fields(model)``; ``None`` where nobody knows, and it may be any."""
    fields = getattr(permissions, "row_fields", None)
    return None if fields is None else fields(model)


class IEngine(IService):
    """Carries broadcasts between servers: what changes on one of them reaches the clients of all.

    A zComm has one (:class:`zcomm.engines.memory.MemoryEngine`) and hands it to each of its zBifrosts. It is a service:
    as a child of the zComm it starts before the first server listens and stops after the last one has stopped.
    """

    clients = Attribute(
        "The number of clients that what is told here may reach, those of other processes included. Where that is "
        "nobody but the sender of a command, its result is not told; an engine that cannot count says two."
    )

    def attach(listener: Listener) -> None:  # noqa: N805 (an interface has no self)
        """Tell ``listener`` of all messages from now on. Attaching it again changes nothing."""

    def detach(listener: Listener) -> None:  # noqa: N805 (an interface has no self)
        """Tell ``listener`` no more. Harmless when it is not attached."""

    def tell(message: Broadcast) -> int:  # noqa: N805 (an interface has no self)
        """Hand ``message`` to every listener, the ones of this process at once and in the order of the calls.

        Each judges by the permissions of its own server who belongs to the audience.

        :return: the number of clients of this process that it is for.
        """

    def cast(message: bytes, node: str | None = None) -> None:  # noqa: N805 (an interface has no self)
        """Tell all other nodes, or one of them: in order, each once, or that they have missed some."""

    def nodes() -> list[str]:
        """The ids of the other nodes that are there."""

    def listen_to_nodes(listener: NodeListener) -> None:  # noqa: N805 (an interface has no self)
        """Tell ``listener`` what other nodes say."""

    elsewhere = Attribute("The number of clients of other processes, as those have said within the last seconds.")

    is_away = Attribute("Whether it cannot be used now, for more than a moment.")

    is_shared = Attribute("Whether other processes may share it: it numbers topics by itself then.")

    def identity() -> Deferred[str]:
        """The id that all have who share this engine, and nobody else.

        :return: a Deferred of it, which fails with :class:`~zcomm.errors.Unavailable` while the engine is away.
        """

    node = Attribute("The id of this process among those that share the engine: the begin of ids of its connections.")

    def deliver(listener: TopicListener) -> None:  # noqa: N805 (an interface has no self)
        """Tell ``listener`` of the topics that it listens to."""

    def listen(topic: str, kept: Kept | None) -> Deferred[Position | None]:  # noqa: N805 (an interface has no self)
        """Deliver the messages and the presence of ``topic`` from now on. Each call is undone by one of
        :meth:`unlisten`.

        :return: a Deferred of the position behind its newest message; of ``None`` where none are kept. It waits as long
            as the engine is away.
        """

    def catch_up(topic: str) -> Deferred[None]:  # noqa: N805 (an interface has no self)
        """Deliver what is there of a topic that is listened to and keeps messages.

        :return: a Deferred that fires when that is done, or the engine is away.
        """

    def unlisten(topic: str) -> None:  # noqa: N805 (an interface has no self)
        """Deliver ``topic`` no more."""

    def publish(
        topic: str,  # noqa: N805 (an interface has no self)
        kept: Kept | None,
        fragment: bytes,
        author: str | None = None,
        origin: str = "",
        key: str | None = None,
        digest: bytes = b"",
        teller: Any = None,
    ) -> Deferred[Position | None]:
        """Publish a message.

        :param kept: what the topic keeps; ``None`` for nothing.
        :param fragment: the inside of its JSON.
        :param author: the user who publishes; ``None`` for the program.
        :param origin: the connection.
        :param key: makes it safe to repeat: the same again, within five minutes, has no effect.
        :param digest: of what is published, by the first 16 bytes of which the same is known. Where what follows is
            another, the topic has been numbered anew since.
        :param teller: handed on to the listener of this process.
        :return: a Deferred of its position; of that which it had, where it is repeated; of ``None`` where none are
            kept, and where it is repeated and the topic has been numbered anew since. It fails with
            :class:`~zcomm.errors.Conflict` for a key that was used for something else, and with
            :class:`~zcomm.errors.Unavailable`.
        """

    def resume(topic: str, since: Position) -> Deferred[Slice]:  # noqa: N805 (an interface has no self)
        """A Deferred of all messages after ``since``, or of none and the reason: ``epoch``, ``history_lost``,
        ``too_old`` or ``too_many``."""

    def read(
        topic: str,  # noqa: N805 (an interface has no self)
        since: Position | None,
        before: Position | None,
        limit: int,
        reverse: bool,
        most: int = 1024 * 1024,
    ) -> Deferred[Slice]:
        """A Deferred of up to ``limit`` messages after ``since`` and before ``before``, the oldest or, with
        ``reverse``, the newest ones, in that order.

        :param before: with an empty epoch, of whichever numbering.
        :param most: bytes of them, more or less; there is always one.
        """

    def drop(topic: str) -> None:  # noqa: N805 (an interface has no self)
        """Forget all messages of ``topic``; its numbering begins anew."""

    def enter(
        topic: str,  # noqa: N805 (an interface has no self)
        connection: str,
        user: str,
        state: bytes | None,
        teller: Any = None,
    ) -> Deferred[None]:
        """Let a connection into a topic, or take its new state; fires when everybody can know.

        :param state: what it says of itself; ``None`` leaves what it has said, which is ``{}`` for one that comes in.
        """

    def leave(topic: str, connection: str, teller: Any = None) -> None:  # noqa: N805 (an interface has no self)
        """Let a connection leave a topic."""

    def claim(name: str, member: str, limit: int) -> Deferred[bool]:  # noqa: N805 (an interface has no self)
        """Ask for one of ``limit`` places that all processes together have under ``name``; given back with
        :meth:`release`, and when the process is dead.

        :return: a Deferred of whether there was one. It fails with :class:`~zcomm.errors.Unavailable`.
        """

    def release(name: str, member: str) -> None:  # noqa: N805 (an interface has no self)
        """Give a place back. Harmless where there is none."""

    def members(topic: str, most: int = 200) -> Deferred[Members]:  # noqa: N805 (an interface has no self)
        """A Deferred of the members of a topic, with names where they are no more than ``most``."""


class IHost(Interface):
    """The program that zComm is made for: ``zComm(host)``. A zCLI is one as it is; what clients may do to its data is
    what :class:`IHostData` has to say.

    Only ``session`` is needed. Attributes are looked at, never this interface asked for: nothing has to be
    declared, and what is missing is done without.
    """

    session = Attribute("Anything but None; zComm keeps nothing in it.")

    logger = Attribute("A logging logger. zcomm.threaded tells it what zComm has to say.")

    walker = Attribute("The context of commands (IWalker) where create_websocket() and start_websocket() name none.")

    data = Attribute("What answers create, read, update, delete and upsert (IHostData).")

    zDispatch = Attribute("Answers the commands that a policy file names for it (ICommandDispatcher).")

    zcomm_concurrent = Attribute("True where data and zDispatch may be called by several threads at once.")

    checker = Attribute(
        "A twisted.cred ICredentialsChecker for IBearerToken whose avatar id is an Identity. With a method "
        "still_valid(identity), which must not block, it is asked about each connected identity once a second; "
        "without one, each token is shown to it again once a minute."
    )

    auth = Attribute("The host's users (IHostUsers); asked where there is no checker.")


class IWalker(Interface):
    """The context of commands. What it has of its own counts before the host's."""

    data = Attribute("As IHost.data.")

    zDispatch = Attribute("As IHost.zDispatch.")

    zcomm_concurrent = Attribute("As IHost.zcomm_concurrent.")


class IHostData(Interface):
    """A host's data: zData, or what a program has in its place. It gets no more than it says that it can."""

    zcomm_filters = Attribute(
        "True where handle_request takes where as docs/protocol.rst has it, and does nothing to any row that it does "
        "not match. Without it clients read all rows of a model and do nothing else: no create, update, delete or "
        "upsert, no filter, and nothing for who may reach some rows or fields only. A zCLI has no such data by itself: "
        "to it, create makes a table, and a filter is a text or not looked at."
    )

    zcomm_concurrent = Attribute(
        "True where several requests may run at once. Without it one runs at a time, also beside the host's "
        "dispatcher; the host or the walker may say it for all its parts."
    )

    def handle_request(request: dict[str, Any]) -> Any:  # noqa: N805 (an interface has no self)
        """Answer one request of a client.

        It may block: zComm calls it in a worker thread.

        :param request: ``action`` and ``model``, which is a name of ASCII letters, digits and ``_``; and as far as they
            were given and have a meaning for the action: ``fields`` and ``conflict_fields``, lists of names;
            ``order_by``, a text like ``"created_at DESC, name"`` or a list of such; ``limit`` and ``offset``, whole
            numbers; and with ``zcomm_filters`` also ``values``, an object; ``where``, a filter, never an empty one for
            update and delete; ``all``, which is true where every row is meant. Names of fields are letters, digits and
            ``_``. Nothing else that a client sends gets here.
        :return: rows as a list for read, the row for create and upsert, ``{"updated": n}`` and ``{"deleted": n}``, or
            what else the client shall get that JSON has a form for. ``False``, ``None`` and ``"error"``, by themselves
            or in the place of a row, say that it failed: the client is told so, and nobody else hears of it.
        :raises zcomm.errors.CommandError: for what the client shall be told; anything else is logged, and the
            client told no more than that something failed.
        """


class IHostUsers(Interface):
    """A host's users: zAuth."""

    def validate(token: str) -> Any:  # noqa: N805 (an interface has no self)
        """Find the owner of a token. It may block: zComm calls it in a worker thread, at each login and, while a client
        is connected, about once a minute: one whose token is nobody's by then is sent away, as is one whose
        name or role is another.

        :return: ``{"username": …, "role": …}``, or ``None`` for nobody's. Without a role it is ``user``.
        :raises Exception: when it cannot be found out; the client is refused with close code 1011, and comes back. For
            the pace of guesses that counts like a wrong token.
        """


class ICommandDispatcher(Interface):
    """A host's own dispatcher (zCLI's zDispatch). It is asked only what a policy file names.

    It answers the keys that stand under ``commands`` of the client's role by their names, before forms and models do;
    ``"*"`` names none, and without a policy file it is never asked. It may block: zComm calls it in a worker thread,
    one command at a time (``zcomm_concurrent``).
    """

    def __call__(zKey: str, zHorizontal: Any, walker: Any) -> Any:
        """Answer one command.

        :param zHorizontal: the key itself, or the text ``KEY(…)`` of that key, which is one line and has no other
            parentheses; never an object.
        :param walker: the context of the server that got it, or ``None``.
        :return: the result, anything that JSON has a form for; ``False`` and ``"error"`` say that it failed.
        :raises zcomm.errors.CommandError: for what the client shall be told.
        """
