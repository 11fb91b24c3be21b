"""The program: the functions, pages and files that clients get, the rights to them, and the threads they run in.

Assembled once from a configuration; each zBifrost of the program serves the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from zcomm.auth.credentials import OperatorCredentials, TokenChecker, ZAuthCredentials
from zcomm.auth.policy import AllowAll, Policy
from zcomm.auth.sessions import open_session, redeem
from zcomm.auth.tokens import TokenStore
from zcomm.budget.budgets import Budgets
from zcomm.commands.description import Description
from zcomm.commands.files import Files
from zcomm.commands.functions import FunctionRegistry, load_functions
from zcomm.commands.pages import PageRegistry
from zcomm.config import Config, Limits, operator_path, read_text, tokens_path, zauth_path
from zcomm.data.models import Schema
from zcomm.data.row_security import validate_grant
from zcomm.errors import ConfigError
from zcomm.host.host import Host
from zcomm.host.line import HostLine
from zcomm.interfaces import Among, Identity, Permissions
from zcomm.runtime.workers import Workers
from zcomm.text import did_you_mean

__all__ = ["Program"]

#: Logins that a host's own check may keep waiting at once; one address has half of them at most.
LOGIN_THREADS = 8
#: Threads that read files of pages.
PAGE_THREADS = 4


class Program(Service):
    """The parts behind the commands of one program. As a service it has the threads of its functions.

    Everything that can be wrong with the configuration is found by the constructor; it connects, binds
    and writes nothing.

    :param schema: the models that the policy speaks of, where they are known.
    :param host: the program's own host, which stands behind the commands beside these parts.
    :ivar functions: what zFunc may call.
    :ivar pages: where zLink may lead.
    :ivar files: what zOpen may read.
    :ivar permissions: who may do what.
    :ivar budgets: the accounts of its users, at all of its servers.
    :ivar workers: where blocking functions run and files are read.
    :ivar host_line: where a host is called that takes one request at a time.
    :raises ConfigError: for a file or module that cannot be read or used.
    """

    name = "program"
    _log = Logger()

    def __init__(self, config: Config, reactor: Any, schema: Schema | None = None, host: Any = None):
        self.config = config
        self._schema = schema
        self._reactor = reactor
        self.permissions: Permissions = AllowAll() if config.policy is None else self._policy(config.policy)
        # Those of zComm's own host, which charges what is done with its data. What a host of one's own calls budgets is
        # something else.
        self.budgets = host.budgets if isinstance(host, Host) else Budgets.on(reactor, config.websocket.limits)
        self.workers = Workers(
            config.threads,
            name="zcomm-worker",
            reactor=reactor,
            are_many=self.budgets.are_many,
            askers=self.budgets.askers,
        )
        self.host_line = HostLine(host, reactor)
        self._logins: Workers | None = None
        self._readers: Workers | None = None
        self.functions = FunctionRegistry()
        for module in config.functions:
            self.functions.update(load_functions(module))
        self.pages = PageRegistry()
        self.files = Files(config.files, self.permissions, self.workers)
        self._checker: TokenChecker | None = None
        #: The operator's own token, once its file has been read.
        self.operator_token = ""

    def startService(self) -> None:
        """Start the threads. Calls made earlier have waited and run now."""
        super().startService()
        self.workers.start()
        self.host_line.start()
        for workers in (self._logins, self._readers):
            if workers is not None:
                workers.start()

    def stopService(self) -> Deferred[None]:
        """End the threads; fires when what ran in them has ended."""
        super().stopService()
        ending = [self.workers.stop(), self.host_line.stop()]
        ending += [workers.stop() for workers in (self._logins, self._readers) if workers is not None]
        return gatherResults(ending).addCallback(lambda _: None)

    def login_workers(self) -> Workers:
        """The threads in which a host is asked whose token it is, and codes are spent: of their own, so that no slow
        function, and no question that is open, keeps anybody from logging in. Made on first use."""
        if self._logins is None:
            self._logins = Workers(LOGIN_THREADS, name="zcomm-login", reactor=self._reactor)
            if self.running:
                self._logins.start()
        return self._logins

    def page_workers(self) -> Workers:
        """The threads in which files of pages are read: of their own, as those of logins are. Made on first use."""
        if self._readers is None:
            self._readers = Workers(PAGE_THREADS, name="zcomm-page", reactor=self._reactor)
            if self.running:
                self._readers.start()
        return self._readers

    def _policy(self, path: Path) -> Policy:
        policy = Policy.from_yaml(read_text(path, "--policy"), str(path))
        for each in policy.narrow_grants():
            if self._schema is None:
                if any(isinstance(value, Among) for value in each.rows.values()):
                    reason = "rows: in: rows can belong to those of another model in zComm's own data only"
                    raise ConfigError(str(path), f"role {each.role}: models: {each.model}: {reason}")
            else:
                fault = validate_grant(self._schema, each.model, each.rows, each.fields, "create" in each.actions)
                if fault:
                    raise ConfigError(str(path), f"role {each.role}: models: {each.model}: {fault}")
        return policy

    def reload(self) -> None:
        """Read the policy file and the tokens anew.

        Commands and broadcasts go by the new policy from now on; connections whose token is gone end.

        :raises ConfigError: for a policy that cannot be used; the old one still holds.
        :raises CredentialsError: for a token file that cannot be used.
        """
        if isinstance(self.permissions, Policy) and self.config.policy is not None:
            self.permissions.become(self._policy(self.config.policy))
        if self._checker is not None:
            self._checker.refresh()
        self.tell_of_roles()

    def tell_of_roles(self) -> None:
        """Warn of tokens whose role the policy does not name: they may do nothing, which hardly anybody means."""
        if self._checker is None or self._checker.store is None or not isinstance(self.permissions, Policy):
            return
        users: dict[str, str] = {}
        for token in self._checker.store.list():
            users.setdefault(token.role, token.user)
        roles = self.permissions.roles
        for role, user in sorted(users.items()):
            if role not in roles:
                self._log.warn(
                    "WARNING: the policy names no role {role!r}, which the token of {user!r} has: "
                    "it may do nothing{hint}",
                    role=role,
                    user=user,
                    hint=did_you_mean(role, roles),
                )

    def checker(self, environ: Mapping[str, str]) -> ICredentialsChecker:
        """The checker of the operator's own token, made on first use, of the tokens of users, and of zAuth's login.

        :raises CredentialsError: for a file of zComm's own that cannot be trusted or written.
        """
        if self._checker is None:
            data_dir = self.config.data_dir
            operator = OperatorCredentials.load_or_create(operator_path(data_dir))
            self.operator_token = operator.token
            zauth = zauth_path(environ)
            checker = TokenChecker(
                operator,
                TokenStore(tokens_path(data_dir)),
                zauth=None if zauth is None else ZAuthCredentials(zauth),
                sign_in=lambda code: self.login_workers().run("sign-in", redeem, data_dir, code),
                open_session=lambda code: self.login_workers().run("session", open_session, data_dir, code),
            )
            # A file that cannot be used ends the start, rather than every login after it.
            checker.refresh()
            self._checker = checker
        return self._checker

    def _session(self, identity: Identity) -> Deferred[str] | None:
        return None if self._checker is None else self._checker.take_session(identity)

    def description(
        self,
        schema: Callable[[], Schema | None],
        limits: Limits,
        topics: Callable[[Identity], Mapping[str, Iterable[str]]],
    ) -> Description:
        """The responder that tells each client which of all this, of the models of ``schema()`` and of ``topics`` it
        may use, and the ``limits`` of its server."""
        return Description(
            schema, self.functions, self.pages, self.files, self.permissions, limits, self._session, topics
        )
