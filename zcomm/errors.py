"""Every error zComm raises on purpose::

    ZCommError
    ├── ConfigError                 a bad option, variable, file or argument (also a ValueError)
    ├── CredentialsError            the credential file cannot be trusted or written
    ├── NotListening                the server is not running
    ├── HandshakeRefused            a client that is not let in
    ├── CommandError                what a client is told about its own command
    │   ├── BadMessage  UnknownCommand  UnknownModel  UnknownField  Invalid
    │   ├── NotFound  Conflict  PermissionDenied
    │   ├── Declined                a person did not want to answer
    │   ├── TooBusy  CommandTimeout  Unavailable        (a retry may help)
    │   └── InternalError
    ├── PortNotReady                nothing listened on a port in time, or no port is free
    ├── ConnectionLost              a client's call had no answer when the connection ended
    ├── MessagesLost                a client's iteration over a topic does not get all of its messages
    └── ServiceError                a local server that cannot be started, stopped or found
        ├── UnknownService  ServiceNotInstalled  PortInUse  DataDirectoryError
        └── ServiceStartFailed  ServiceStartTimeout  ServiceStopFailed  ServiceStopTimeout

A ``CommandError`` travels to the client as it is: its text must never hold a path, SQL, a
stack or a secret. Anything else that escapes a command is logged and answered ``internal``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zcomm.text import did_you_mean
from zcomm.wire.closecodes import is_final

__all__ = [
    "BadMessage",
    "CommandError",
    "CommandTimeout",
    "ConfigError",
    "ConnectionLost",
    "Conflict",
    "CredentialsError",
    "DataDirectoryError",
    "Declined",
    "HandshakeRefused",
    "InternalError",
    "Invalid",
    "MessagesLost",
    "NotFound",
    "NotListening",
    "PermissionDenied",
    "PortInUse",
    "PortNotReady",
    "ServiceError",
    "ServiceNotInstalled",
    "ServiceStartFailed",
    "ServiceStartTimeout",
    "ServiceStopFailed",
    "ServiceStopTimeout",
    "TooBusy",
    "Unavailable",
    "UnknownCommand",
    "UnknownField",
    "UnknownModel",
    "UnknownService",
    "ZCommError",
]


class ZCommError(Exception):
    """The base of every error zComm raises on purpose. Never raised itself."""


class ConfigError(ZCommError, ValueError):
    """A setting that cannot be used.

    :ivar name: the option, variable, file or argument as the user wrote it.
    :ivar reason: what is wrong and what to write instead.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class CredentialsError(ZCommError):
    """A credential file that cannot be trusted, read or written.

    :ivar path: the file.
    :ivar reason: what is wrong.
    :ivar fix: the one command that repairs it.
    """

    def __init__(self, path: str, reason: str, fix: str = ""):
        super().__init__(path, reason, fix)
        self.path = path
        self.reason = reason
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f"; fix it with: {self.fix}" if self.fix else "")


class NotListening(ZCommError):
    """Something was asked of a WebSocket server that is not running."""

    def __str__(self) -> str:
        return "the WebSocket server is not listening; call start_websocket() first"


class HandshakeRefused(ZCommError):
    """A client that is not let in.

    :ivar close_code: the WebSocket close code it gets (RFC 6455 section 7.4).
    :ivar reason: the fixed text it gets.
    """

    def __init__(self, close_code: int, reason: str):
        super().__init__(close_code, reason)
        self.close_code = close_code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason} (close code {self.close_code})"


class CommandError(ZCommError):
    """An error of a command, whose text its client is told.

    :cvar code: the slug programs test for.
    :cvar retryable: whether the same command may succeed later.
    :ivar text: the sentence people read.
    :ivar fields: for validation, the reason by field name.
    :ivar later: of a command that goes on all the same, a Deferred of what comes of it.
    """

    code = "internal"
    retryable = False
    later: Any = None

    def __init__(self, text: str, fields: Mapping[str, str] | None = None):
        super().__init__(text)
        self.text = text
        self.fields = dict(fields) if fields else {}

    def __str__(self) -> str:
        return self.text


class BadMessage(CommandError):
    """Not a message of the protocol: not JSON, not an object, no key."""

    code = "bad_message"


class UnknownCommand(CommandError):
    """No responder for this ``zKey``, and no function or page of that name."""

    code = "unknown_command"


class UnknownModel(CommandError):
    """A model the schema does not have."""

    code = "unknown_model"


class UnknownField(CommandError):
    """A field or filter operator the model does not have."""

    code = "unknown_field"


class Invalid(CommandError):
    """A well-formed command with values that cannot be used; ``fields`` says which and why."""

    code = "invalid"


class NotFound(CommandError):
    """The file or row is not there, or may not be known to be there."""

    code = "not_found"


class Declined(Invalid):
    """A person was asked and did not want to answer."""

    def __init__(self, text: str = "The prompt was declined", fields: Mapping[str, str] | None = None):
        super().__init__(text, fields)


class Conflict(CommandError):
    """The write contradicts what is stored (a unique value that exists, a foreign key)."""

    code = "conflict"


class PermissionDenied(CommandError):
    """The client's role may not do this."""

    code = "permission_denied"

    def __init__(self, text: str = "Permission denied", fields: Mapping[str, str] | None = None):
        super().__init__(text, fields)


class TooBusy(CommandError):
    """A limit on work in flight or waiting was reached."""

    code = "too_busy"
    retryable = True


class CommandTimeout(CommandError):
    """The command did not end in time."""

    code = "timeout"
    retryable = True


class Unavailable(CommandError):
    """The database or a service the command needs does not answer."""

    code = "unavailable"
    retryable = True


class InternalError(CommandError):
    """Something failed that the client cannot mend; the cause is in the server's log."""

    code = "internal"

    def __init__(self, text: str = "Internal error", fields: Mapping[str, str] | None = None):
        super().__init__(text, fields)


class PortNotReady(ZCommError, TimeoutError):
    """A port on which nothing listened in time, or no port that is free.

    :ivar host: the address or name.
    :ivar port: the port, 0 when any would have done.
    :ivar reason: what was waited for, and what came instead.
    """

    def __init__(self, host: str, port: int, reason: str):
        super().__init__(reason)
        self.host = host
        self.port = port
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.host}:{self.port}: {self.reason}" if self.port else f"{self.host}: {self.reason}"


class ServiceError(ZCommError):
    """A local server that cannot be started, stopped or found.

    :ivar service: its name.
    :ivar reason: the cause, in the server's own words where it gave any.
    :ivar fix: the one command or setting that repairs it, or where to look on.
    """

    #: The fix of those that are given none; ``{service}`` is the service's name.
    usual_fix = "zcomm service logs {service} shows its log, and zcomm doctor looks at the machine"

    def __init__(self, service: str, reason: str, fix: str = ""):
        fix = fix or self.usual_fix.format(service=service)
        super().__init__(service, reason, fix)
        self.service = service
        self.reason = reason
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.service}: {self.reason}" + (f"; {self.fix}" if self.fix else "")


class UnknownService(ServiceError):
    """No service of that name is registered.

    :ivar known: the names that are.
    """

    usual_fix = "declare it, in a file for --services or as a ServiceDeclaration"

    def __init__(self, service: object, known: Sequence[str] = ()):
        name = service if isinstance(service, str) else repr(service)
        fix = f"the services are: {', '.join(sorted(known))}" if known else ""
        reason = f"there is no service of that name{did_you_mean(name, known)}"
        super().__init__(name[:60], reason, fix)
        self.known = tuple(known)


class ServiceNotInstalled(ServiceError):
    """The program of the service is not on this machine; ``fix`` says how to get it."""


class PortInUse(ServiceError):
    """Somebody else has the port.

    :ivar port: the port.
    :ivar holder: who has it, as far as this user may know: ``pid 812 (postgres)``.
    """

    usual_fix = "give another port, or end whoever has it"

    def __init__(self, service: str, port: int, holder: str = "", fix: str = ""):
        reason = f"port {port} is in use" + (f" by {holder}" if holder else "")
        super().__init__(service, reason, fix)
        self.port = port
        self.holder = holder


class DataDirectoryError(ServiceError):
    """The data directory cannot be used as it is. zComm never deletes one.

    :ivar path: the file or directory at fault.
    """

    usual_fix = "give another data directory, by data_dir=… or --service-dir"

    def __init__(self, service: str, path: str, reason: str, fix: str = ""):
        super().__init__(service, f"{path}: {reason}", fix)
        self.path = path


class ServiceStartFailed(ServiceError):
    """The server ended before it was ready, or was stopped before it was.

    :ivar exit_code: its exit status, negative for a signal, ``None`` when it never ran.
    :ivar output_tail: the last lines of its log.
    :ivar permanent: whether the same start would fail the same way again.
    """

    def __init__(
        self,
        service: str,
        reason: str,
        fix: str = "",
        *,
        exit_code: int | None = None,
        output_tail: str = "",
        permanent: bool = False,
    ):
        super().__init__(service, reason, fix)
        self.exit_code = exit_code
        self.output_tail = output_tail
        self.permanent = permanent


class ServiceStartTimeout(ServiceError):
    """The server ran but was not ready in time; it has been stopped again.

    :ivar seconds: how long it was given.
    :ivar output_tail: the last lines of its log.
    """

    def __init__(self, service: str, seconds: float, reason: str = "", fix: str = "", *, output_tail: str = ""):
        super().__init__(service, reason or f"not ready after {seconds:g} s", fix)
        self.seconds = seconds
        self.output_tail = output_tail


class ServiceStopFailed(ServiceError):
    """The server refused to stop without losing data, and still runs."""


class ServiceStopTimeout(ServiceError):
    """The server still ran after the whole stop ladder, ``SIGKILL`` included.

    :ivar seconds: how long it was given.
    """

    usual_fix = "it waits for the system, usually for a disk or a network file system that does not answer"

    def __init__(self, service: str, seconds: float, fix: str = ""):
        super().__init__(service, f"still running {seconds:g} s after it was told to stop", fix)
        self.seconds = seconds


class ConnectionLost(ZCommError):
    """A connection of the Python client ended, or was never let in.

    :ivar close_code: the WebSocket close code; 1006 when the peer said none.
    :ivar reason: what the peer said.
    :ivar retryable: whether coming back may help. A call that was sent may or may not have been carried out: for a
        change of a model without an idempotency key it is false, as sent again it could be made twice.
    """

    def __init__(self, close_code: int, reason: str = ""):
        super().__init__(close_code, reason)
        self.close_code = close_code
        self.reason = reason
        self.retryable = not is_final(close_code)

    def __str__(self) -> str:
        return f"the connection ended with {self.close_code}" + (f": {self.reason}" if self.reason else "")


class MessagesLost(ZCommError):
    """Messages of a topic are missing from here on where a client iterates over them.

    :ivar topic: the name of the topic.
    :ivar reason: the server's word for why it no longer has them (``epoch``, ``history_lost``, ``too_old``,
        ``too_many``, ``not_kept``), or ``too_slow``: the iteration let too many wait.
    """

    def __init__(self, topic: str, reason: str):
        super().__init__(topic, reason)
        self.topic = topic
        self.reason = reason

    def __str__(self) -> str:
        return f"messages of {self.topic} are missing: {self.reason}"


def command_error(message: Mapping[str, object]) -> CommandError:
    """The error that a server's error message stands for; a code that is not known becomes a plain one."""
    code = str(message.get("code", "internal"))
    # Those of zComm alone: one of a program's own may be made of anything.
    own = [kind for kind in _kinds(CommandError) if kind.__module__ == __name__]
    kinds = {kind.code: kind for kind in own if kind is not Declined}
    kind = kinds.get(code, CommandError)
    fields = message.get("fields")
    error = kind(str(message.get("error", "")), fields if isinstance(fields, dict) else None)
    if kind is CommandError:
        error.code = code
    # The server knows of this one: where a write may have been made, what usually may be tried again may not.
    error.retryable = message.get("retryable") is True
    return error


def _kinds(base: type[CommandError]) -> list[type[CommandError]]:
    return [kind for child in base.__subclasses__() for kind in (child, *_kinds(child))]
