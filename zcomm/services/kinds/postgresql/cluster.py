"""Making a PostgreSQL data directory so that it is complete or not there, and keeping one in reserve.

``initdb`` writes ``PG_VERSION`` in its first moments; killed later it leaves a directory that every tool
takes for initialised and that crashes for ever. So it works in ``<directory>.new-<pid>``, a note about the
cluster is written last, and one ``rename`` puts it in its place. A reserve made in idle time is put in
place by the same ``rename``, which is why a first start can take milliseconds.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThreadPool

from zcomm.errors import ConfigError, DataDirectoryError, ServiceStartFailed
from zcomm.runtime.files import replace_file
from zcomm.services.kinds.postgresql.log import LOG
from zcomm.services.kinds.postgresql.programs import major
from zcomm.services.machine.account import Account
from zcomm.services.machine.command import run_command
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.logfile import LogFile
from zcomm.services.machine.query import NoAnswer
from zcomm.services.supervision.diagnosis import diagnose
from zcomm.services.supervision.environment import ServicesEnvironment
from zcomm.services.supervision.launch import Launch, command_line, server_environment
from zcomm.services.supervision.record import read_json
from zcomm.text import redact

__all__ = ["ClusterNote", "Clusters", "checked_name", "read_note", "system_identifier", "working_in"]

NOTE = "zcomm.json"
#: Seconds ``initdb`` may take; half a second on an idle disk, much longer on a busy one.
INITDB_TIMEOUT = 120.0
#: Seconds it may take at low priority, when it waits for everybody else and nobody for it.
LOW_PRIORITY_TIMEOUT = 3600.0
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$-]{0,62}\Z")
#: A row as single-user mode writes it.
_OID = re.compile(r'oid = "(\d+)"')
_LEFTOVER = re.compile(r"\.new-(\d+)\Z")


@dataclass(frozen=True, slots=True)
class ClusterNote:
    """The note that zComm keeps in the data directory of a cluster it made, readable by its owner alone.

    :ivar user: the superuser.
    :ivar databases: those zComm made, each with its object identifier, which names its directory in ``base/``.
    """

    user: str = "postgres"
    password: str = field(default="", repr=False)
    databases: Mapping[str, int] = field(default_factory=dict)
    version: str = ""


def checked_name(argument: str, name: object) -> str:
    """A name of a database or role that needs no thought about quoting. :raises ConfigError: otherwise."""
    if not isinstance(name, str) or not _IDENTIFIER.match(name):
        raise ConfigError(argument, f"{name!r} is no name: letters, digits, _ $ and -, at most 63")
    return name


def read_note(data_dir: Path) -> ClusterNote | None:
    """The note in a data directory, ``None`` for one that zComm did not make."""
    value = read_json(data_dir / NOTE)
    databases = value.get("databases")
    if isinstance(databases, list):
        # As earlier versions wrote it; whether they are there is found out at the next start.
        databases = dict.fromkeys(map(str, databases), 0)
    if not isinstance(value.get("password"), str) or not isinstance(databases, dict):
        return None
    return ClusterNote(
        str(value.get("user", "postgres")),
        value["password"],
        {name: number for name, number in databases.items() if isinstance(number, int)},
        str(value.get("version", "")),
    )


def write_note(data_dir: Path, note: ClusterNote, account: Account) -> None:
    """Replace the note. :raises OSError: when that fails; the old one is there then."""
    owner = (account.uid, account.gid) if os.geteuid() == 0 else (-1, -1)
    replace_file(data_dir / NOTE, json.dumps(asdict(note)).encode(), *owner)


def working_in(data_dir: Path) -> list[str]:
    """The words that let a server work in this directory and no other.

    ``-D`` alone says where its settings are, and those may name another directory for the data: that of the cluster
    which this one was copied from.
    """
    return ["-D", str(data_dir), "-c", f"data_directory={data_dir}"]


def system_identifier(data_dir: Path) -> str:
    """The identifier that no other cluster has, from the first eight bytes of ``pg_control``; empty if unreadable."""
    try:
        with open(data_dir / "global" / "pg_control", "rb") as file:
            start = file.read(8)
    except OSError:
        return ""
    return str(int.from_bytes(start, sys.byteorder)) if len(start) == 8 else ""


class Clusters:
    """Makes and changes data directories with the programs of one installation, as one account."""

    def __init__(
        self, environment: ServicesEnvironment, service: str, installation: Installation, account: Account, run: Path
    ):
        self._environment = environment
        self._service = service
        self._installation = installation
        self._account = account
        self._run = run

    # -- a new one ---------------------------------------------------------------------------------------

    async def make(self, target: Path, password: str, database: str, low_priority: bool = False) -> None:
        """Make a cluster at ``target``, with scram passwords only, UTF-8, and ``database``.

        :param low_priority: whether nobody waits for it. Otherwise it is not on the disk afterwards, which takes longer
            than all the rest; see :meth:`write_through`.
        :raises ServiceError: typed; nothing is left behind then.
        """
        in_place = not self._can_rename_to(target)
        work = target if in_place else target.with_name(f"{target.name}.new-{os.getpid()}")
        secret = password or secrets.token_urlsafe(24)
        word_file = self._run / f".word-{os.getpid()}"
        owner = (self._account.uid, self._account.gid) if os.geteuid() == 0 else (-1, -1)
        try:
            if not in_place:
                await self._thread(self._make_work_directory, work)
            replace_file(word_file, secret.encode(), *owner, durable=False)
            await self._initdb(work, word_file, low_priority)
            note = ClusterNote("postgres", secret, {}, self._installation.version_text)
            note = await self.amend(work, note, database, "", durable=False)
            await self._thread(write_note, work, note, self._account)
            if low_priority:
                # Now, or the first start pays for it: its first fsync would wait for all.
                await self.write_through(work)
            if not in_place:
                os.rename(work, target)
        except OSError as error:
            reason = f"cannot be made: {error.strerror}"
            raise DataDirectoryError(self._service, str(target), reason) from error
        finally:
            word_file.unlink(missing_ok=True)
            if not in_place and work.exists():
                await self._thread(shutil.rmtree, work, True)

    async def write_through(self, data_dir: Path) -> None:
        """Have a cluster written to the disk, at low priority; its server may run.

        :raises ServiceError: when that fails.
        """
        await self._run_initdb(["--sync-only", "-D", str(data_dir)], low_priority=True)

    def _can_rename_to(self, target: Path) -> bool:
        """Whether a finished directory can be put there: not onto a mount point or below a closed parent."""
        if not os.access(target.parent, os.W_OK | os.X_OK):
            return not target.exists()
        return not (target.exists() and os.stat(target).st_dev != os.stat(target.parent).st_dev)

    def _make_work_directory(self, work: Path) -> None:
        shutil.rmtree(work, ignore_errors=True)
        os.mkdir(work, 0o700)
        os.chmod(work, 0o700)
        if os.geteuid() == 0:
            os.chown(work, self._account.uid, self._account.gid)

    async def _initdb(self, work: Path, word_file: Path, low_priority: bool) -> None:
        locale = "C.UTF-8" if sys.platform.startswith("linux") else "C"
        words = [
            "-D",
            str(work),
            "-E",
            "UTF8",
            f"--locale={locale}",
            "--lc-messages=C",
            "-N",
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            f"--pwfile={word_file}",
            "--data-checksums",
        ]
        await self._run_initdb(words, low_priority)

    async def _run_initdb(self, arguments: Sequence[str], low_priority: bool) -> None:
        initdb = self._installation.tool("initdb")
        if initdb is None:
            raise ServiceStartFailed(
                self._service,
                f"{self._installation.directory} has no initdb",
                "install the whole server package",
                permanent=True,
            )
        words = [str(initdb), *arguments]
        if low_priority and (nice := shutil.which("nice")):
            # A tenth of a share: with the lowest priority it would hardly get on beside a program that never rests.
            words = [nice, "-n", "10", *words]
        status, output = await self._run_as_account(
            words, timeout=LOW_PRIORITY_TIMEOUT if low_priority else INITDB_TIMEOUT
        )
        if status != 0:
            cause = diagnose(LOG, output)
            raise ServiceStartFailed(
                self._service,
                f"initdb failed: {cause.reason or redact(output[-300:]).strip()}",
                cause.fix,
                exit_code=status,
                output_tail=redact(output[-2000:]),
                permanent=True,
            )

    # -- changes, while no server runs ---------------------------------------------------------------------

    async def amend(
        self, data_dir: Path, note: ClusterNote, database: str, password: str, durable: bool = True
    ) -> ClusterNote:
        """Make ``database`` if it is not there, change the password if it is another.

        Done in single-user mode, which asks for no password and listens nowhere.

        :param durable: whether all is on the disk afterwards. It must be where there is data: this may begin with the
            recovery from a crash, whose checkpoint gives up the log that was recovered from.
        :return: what is so afterwards (not written down yet).
        """
        statements = []
        known = (data_dir / "base" / str(note.databases.get(database, 0))).is_dir()
        wanted = not known and database != "postgres"
        if wanted:
            # Copying files is the faster way while nobody is connected; older servers know no other.
            how = " STRATEGY file_copy" if self._installation.version >= (15,) else ""
            statements.append(f'CREATE DATABASE "{database}"{how}')
            # A name as checked_name() has it.
            statements.append(f"SELECT oid FROM pg_database WHERE datname = '{database}'")  # noqa: S608 (see above)
        if password and password != note.password:
            quoted = password.replace("'", "''")
            statements.append(f"ALTER ROLE \"{note.user}\" PASSWORD '{quoted}'")
            note = replace(note, password=password)
        if statements:
            words = [
                str(self._installation.server),
                "--single",
                *(() if durable else ("-F",)),
                *working_in(data_dir),
                "-c",
                "log_min_error_statement=panic",
                "-c",
                "lc_messages=C",
                "-c",
                "restart_after_crash=off",
                "postgres",
            ]
            status, output = await self._run_as_account(words, "".join(f"{one};\n" for one in statements))
            failed = [line for line in output.splitlines() if "ERROR:" in line and "already exists" not in line]
            if status != 0 or failed:
                cause = diagnose(LOG, output)
                reason = redact(cause.reason, password, note.password)
                raise ServiceStartFailed(
                    self._service,
                    f"its database could not be set up: {reason}",
                    cause.fix,
                    exit_code=status,
                    permanent=cause.permanent,
                )
            if wanted and (number := _OID.search(output)):
                note = replace(note, databases={**note.databases, database: int(number[1])})
        return note

    async def _run_as_account(
        self, words: Sequence[str], given: str = "", timeout: float = INITDB_TIMEOUT
    ) -> tuple[int | None, str]:
        environment = server_environment(self._environment.environ, self._account)
        launch = Launch(
            argv=tuple(words),
            log=LogFile(Path(os.devnull)),
            account=self._account,
            environment=environment,
            death_signal=signal.SIGTERM,
        )
        argv = command_line(launch, self._environment.tools)
        try:
            return await run_command(self._environment.reactor, argv, environment, timeout, given)
        except NoAnswer:
            raise ServiceStartFailed(
                self._service, f"{Path(words[0]).name} did not end within {timeout:g} s", "look at the disk"
            ) from None

    # -- the reserve -------------------------------------------------------------------------------------

    def reserve_path(self, root: Path) -> Path:
        """The directory of this version's reserve."""
        return root / "reserve" / f"{self._service}-{major(self._installation)}"

    def take_reserve(self, root: Path, target: Path) -> bool:
        """Put the reserve in place of ``target``; False when there is none that fits."""
        reserve = self.reserve_path(root)
        try:
            if os.stat(reserve).st_uid != self._account.uid or read_note(reserve) is None:
                return False
            os.rename(reserve, target)
        except OSError:
            return False
        return True

    def remove_leftovers(self, target: Path) -> None:
        """Remove what a killed initialisation left beside ``target``. **Blocks**; with the lock held."""
        for path in target.parent.glob(f"{target.name}.new-*"):
            found = _LEFTOVER.search(path.name)
            if found and (int(found[1]) == os.getpid() or not os.path.exists(f"/proc/{found[1]}")):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)

    def _thread(self, function: Any, *arguments: Any) -> Any:
        reactor = self._environment.reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)
