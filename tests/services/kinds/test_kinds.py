"""A new kind of server is one class: everything else goes by the registry of kinds."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.localservers import processes_in
from support.ports import unused_port
from support.waiting import wait_until
from twisted.internet.defer import Deferred

from zcomm.cli.doctor import sites_of
from zcomm.cli.service import declare_service
from zcomm.errors import ConfigError, ServiceStartFailed
from zcomm.services.declaration import Probe, ServiceDeclaration
from zcomm.services.doctor.findings import findings
from zcomm.services.doctor.inventory import take_inventory
from zcomm.services.examination import Examiner, Finding, ServiceSite, SiteFacts
from zcomm.services.kinds import KINDS
from zcomm.services.machine.directories import DirectoryFacts
from zcomm.services.machine.installations import Installation, preferred
from zcomm.services.machine.programs import Programs, discover
from zcomm.services.machine.query import Address, NoAnswer, ask
from zcomm.services.manager import ServiceManager
from zcomm.services.options import BIN_DIR, Options, Setting
from zcomm.services.status import ConnectionInfo, Health, ServiceStatus
from zcomm.services.supervision.diagnosis import LogReading
from zcomm.services.supervision.kind import KnownKind
from zcomm.services.supervision.launch import Launch
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import ServerProcess
from zcomm.services.supervision.record import Record
from zcomm.tap import Options as ServerOptions

SERVER = """#!%s
import os, socket, sys
if sys.argv[1] == "--version":
    print("Toy server 2.1")
    sys.exit()
port, motto = int(sys.argv[1]), sys.argv[2]
if motto == "bad":
    sys.exit("FATAL: the toy is broken by its motto")
listening = socket.create_server(("127.0.0.1", port))
while True:
    client, _ = listening.accept()
    with client:
        client.sendall(b"%%d %%s\\n" %% (os.getpid(), motto.encode()))
"""


class ToyExaminer(Examiner):
    """The doctor's knowledge of toys."""

    title = "Toy"
    processes = ("toy-server",)
    loopback = "nothing"

    def look_at_site(self, site: ServiceSite, facts: DirectoryFacts) -> bool:
        return (site.data_dir / "rust").exists()

    def judge_site(self, seen: SiteFacts, found: Sequence[Installation]) -> Iterator[Finding]:
        if seen.details:
            yield Finding(seen.site.service, "it rusts", {"path": str(seen.site.data_dir)}, "oil it")


class Toy(KnownKind):
    """A server that says its pid and its motto, and hangs up."""

    name = "toy"
    declaration = ServiceDeclaration(
        "toy", kind="toy", port="auto", ready=Probe("toy"), alive=Probe("toy", every=0.05, timeout=2.0)
    )
    settings = (
        BIN_DIR,
        Setting("motto", help="what it says (play)"),
        Setting("nest", Path, "where it sleeps"),
        Setting("spring_driven", bool, "whether it is wound up"),
        Setting("mood", ("calm", "wild"), "how it plays [TOY_MOOD, else calm]", variable="TOY_MOOD"),
        Setting("secret"),
    )
    programs = Programs(
        service="toy",
        names=("toy-server",),
        places=(),
        wheels=(),
        flavours={"Toy server": "toy"},
        packages={"debian": "sudo apt install toy"},
    )
    log = LogReading(
        causes=((r"broken by its motto", True, "choose another motto"),), message=r"FATAL: (.*)", noise=r"^\s*$"
    )
    examiner = ToyExaminer()

    async def prepare(self, options: Options) -> Launch:
        service = self.service
        data_dir = options.data_dir or service.home.data
        account = service.account_for(data_dir, options.user)
        service.claim_home(account)
        service.claim_data_dir(data_dir, service.look_at_data_dir(data_dir, account, 0), account)
        environment = service.environment
        found = await discover(self.programs, environment.environ, reactor=environment.reactor)
        chosen = preferred(found, "toy")
        assert chosen is not None
        port = await service.choose_port(options.port)
        service.about_to_start(port, data_dir, account, version=chosen.version_text)
        return service.launch([str(chosen.server), str(port), options.get("motto", "play")], account, str(data_dir))

    async def become_ready(self, process: ServerProcess) -> None:
        await wait_until(lambda: self.service.home.log.path.exists(), "its log")
        while True:
            try:
                reply: Reply = await self.ask(self.service.record, 1.0)
            except NoAnswer:
                turned: Deferred[None] = Deferred()
                self.service.environment.reactor.callLater(0.01, turned.callback, None)
                await turned
                continue
            assert reply.facts["pid"] == str(process.pid)
            return

    def ask(self, record: Record, timeout: float) -> Deferred[Reply]:
        return self.question(self.service.environment.reactor, ("127.0.0.1", record.port), timeout)

    @staticmethod
    def question(reactor: Any, address: Address, timeout: float) -> Deferred[Reply]:
        def parse(received: bytes) -> Reply | None:
            pid, _, motto = received.decode().partition(" ")
            if not motto.endswith("\n"):
                return None
            tired = motto == "tired\n"
            return Reply(True, Health.DEGRADED if tired else Health.HEALTHY, "it is tired" * tired, {"pid": pid})

        return ask(reactor, address, b"", parse, timeout)

    def connection_info(self) -> ConnectionInfo:
        port = self.service.port()
        return ConnectionInfo(host="127.0.0.1", port=port, connection_string=f"toy://127.0.0.1:{port}")

    async def foreign(self) -> ServiceStatus | None:
        return None


@pytest.fixture
def toys(make_manager: Callable[..., ServiceManager], place: Path) -> ServiceManager:
    """A manager that knows one kind more."""
    program = place / "bin" / "toy-server"
    program.parent.mkdir(mode=0o755)
    program.write_text(SERVER % (shutil.which("python3", path=os.defpath) or sys.executable))
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ.get('PATH', os.defpath)}"
    return make_manager(environ={"PATH": path}, kinds=(*KINDS, Toy))


@pytest_twisted.ensureDeferred
async def test_a_kind_is_started_watched_and_stopped(toys: ServiceManager, place: Path):
    """Its programs are found, its process is proved, its death is mended, its end is waited for."""
    assert toys.names == (*(kind.name for kind in KINDS), "toy")
    assert await toys.start("toy", motto="tired", port=unused_port()) is True
    status = await toys.status("toy")
    assert (status["state"], status["version"], status["managed"]) == ("running", "2.1", True)
    assert toys.connection_info("toy")["connection_string"] == f"toy://127.0.0.1:{status['port']}"
    service = toys.get("toy")
    await wait_until(lambda: service.health is Health.DEGRADED, "an answer")
    assert service.reason == "it is tired"
    os.kill(status["pid"], signal.SIGKILL)
    await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "a restart")
    assert (await toys.status("toy"))["port"] == status["port"]
    assert await toys.stop("toy") is True and processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_a_kind_explains_its_failures(toys: ServiceManager):
    """Its own table reads its log; its own settings are known, others are not."""
    with pytest.raises(ServiceStartFailed, match="the toy is broken by its motto") as caught:
        await toys.start("toy", motto="bad")
    assert caught.value.permanent and caught.value.fix == "choose another motto"
    with pytest.raises(ConfigError, match="did you mean"):
        await toys.start("toy", moto="x")


@pytest_twisted.ensureDeferred
async def test_a_kind_is_a_probe_of_declared_services(toys: ServiceManager):
    """A server that speaks its protocol can be asked in it, whatever started it."""
    declared = ServiceDeclaration(
        "other", argv=("toy-server", "{port}", "hello"), port="auto", ready=Probe("toy"), alive=Probe("toy", every=0.05)
    )
    service = toys.add(declared)
    assert await toys.start("other") is True
    await wait_until(lambda: service.health is Health.HEALTHY, "an answer")
    assert await toys.stop("other") is True


@pytest_twisted.ensureDeferred
async def test_the_doctor_knows_a_kind(toys: ServiceManager):
    """Programs, directories and their faults are looked for by the registry."""
    (home,) = [one for one in sites_of(toys)[0] if one.kind == "toy"]
    home.data_dir.mkdir(parents=True)
    (home.data_dir / "rust").write_text("")
    seen = await take_inventory([home], toys.environment.environ, toys.kinds)
    assert [one.version_text for one in seen.installations["toy"]] == ["2.1"]
    assert ("it rusts", "oil it") in [(one.problem, one.fix) for one in findings(seen)]
    missing = await take_inventory([], {"PATH": "/nonexistent"}, (Toy,))
    assert "no Toy server is installed" in [one.problem for one in findings(missing)]


def test_the_settings_of_a_kind_are_on_the_command_line(capsys: pytest.CaptureFixture[str]):
    """Each as its sort is written, in a group of its kind; what others have too is there once, a secret never."""
    parser = argparse.ArgumentParser()
    declare_service(parser, (*KINDS, Toy))

    def given(*words: str) -> dict[str, Any]:
        parsed = vars(parser.parse_args(["start", "toy", *words]))
        settings = {name.removeprefix("setting."): value for name, value in parsed.items() if "." in name}
        return {name: value for name, value in settings.items() if value is not None}

    assert given() == {}
    words = ["--bin-dir", "/b", "--motto", "hi", "--nest", "/n", "--no-spring-driven", "--mood", "wild", "--port", "80"]
    assert given(*words) == {
        "bin_dir": "/b",
        "motto": "hi",
        "nest": "/n",
        "spring_driven": False,
        "mood": "wild",
        "port": 80,
    }
    assert given("--spring-driven", "--appendfsync", "always") == {"spring_driven": True, "appendfsync": "always"}
    for wrong in (["--mood", "mad"], ["--secret", "x"], ["--port", "0"]):
        with pytest.raises(SystemExit):
            given(*wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parser.parse_args(["restart", "--help"])
    shown, groups = capsys.readouterr().out, {}
    for part in shown.split("\n\n"):
        title, _, text = part.partition(":\n")
        groups[title] = text
    assert "--bin-dir DIR" in groups["options"] and groups["options"].count("--bin-dir") == 1
    assert "--database" in groups["PostgreSQL"] and "--appendfsync {everysec,always}" in groups["Redis"]
    for text in ("--motto MOTTO", "--nest DIR", "--no-spring-driven", "--mood {calm,wild}", "[TOY_MOOD, else calm]"):
        assert text in groups["Toy"]
    assert "secret" not in shown


def test_the_variables_of_a_kind_are_in_the_help_of_the_server(monkeypatch: pytest.MonkeyPatch):
    """With its line in the registry, ``twistd zcomm --help`` names what a start reads from the environment."""
    monkeypatch.setattr("zcomm.services.kinds.KINDS", (*KINDS, Toy))
    words = ServerOptions().getUsage().replace(",", "").replace(".", "").split()
    for name in ("POSTGRESQL_PORT", "POSTGRESQL_DATA_DIR", "REDIS_PORT", "REDIS_DATA_DIR", "REDIS_APPENDFSYNC"):
        assert words.count(name) == 1
    assert words[-3:] == ["TOY_PORT", "TOY_DATA_DIR", "TOY_MOOD"]


def test_a_kind_reads_its_settings(toys: ServiceManager):
    """By argument, or by variable; a wrong one names where it stands."""
    kind = toys.get("toy").kind
    assert dict(kind.read_options({"motto": "hi", "mood": "wild"}).more) == {"motto": "hi", "mood": "wild"}
    for arguments, words in (({"mood": "mad"}, "mood: is calm or wild"), ({"spring_driven": 1}, "is True or False")):
        with pytest.raises(ConfigError, match=words):
            kind.read_options(arguments)
