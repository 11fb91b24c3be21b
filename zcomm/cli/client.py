"""``zcomm url``, ``zcomm call`` and ``zcomm publish``: a running server's page, a command to it, a message to many."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.error import ConnectError

from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.sessions import invite
from zcomm.config import data_directory, operator_path, read_text
from zcomm.errors import CommandError, ConfigError
from zcomm.runtime.runfile import disbelieved, running_servers
from zcomm.text import redact_url

__all__ = ["declare_call", "declare_publish", "declare_url"]

NO_SERVER = "zcomm: no server runs on this data directory; start one with: twistd -n zcomm, or name another --data-dir"

#: For a server that listens on nothing else.
ONLY_BEHIND_A_PROXY = (
    "zcomm: the server on this data directory is reached through its proxy only, which sends the header of the PROXY "
    "protocol"
)


def declare_url(url: argparse.ArgumentParser) -> None:
    """Declare ``zcomm url``."""
    url.description = (
        "Print the link that opens the page of the running server, signed in. It holds a code that is good for ten "
        "minutes and works once; it stands in the fragment, which a browser sends to nobody."
    )
    url.add_argument("--data-dir", metavar="DIR", help="the server's data directory [ZCOMM_HOME, else ~/.zolo/zcomm]")
    url.add_argument("--url", help="the WebSocket address of the server that is meant, where several run")
    url.add_argument("--websocket", action="store_true", help="print the WebSocket address instead, without a code")
    url.add_argument("--json", action="store_true", help="print an object for programs")
    url.set_defaults(run=print_url)


def declare_call(call: argparse.ArgumentParser) -> None:
    """Declare ``zcomm call``."""
    call.description = (
        "Send one command and print its result as JSON. Exit status 1 when the server answers with an error. Examples: "
        "zcomm call read_Users '{\"where\": {\"active\": true}}'; zcomm call 'zFunc(calculateTotal, {cart_id: 123})'."
    )
    call.add_argument("key", metavar="COMMAND", help="the zKey, or a string form such as zLink(/admin/users)")
    call.add_argument("horizontal", metavar="JSON", nargs="?", help="the zHorizontal; without it the key stands for it")
    _declare_server(call)
    call.set_defaults(run=send_call)


def declare_publish(publish: argparse.ArgumentParser) -> None:
    """Declare ``zcomm publish``."""
    publish.description = (
        "Send one message to all who have subscribed to a topic. Exit status 1 when the server answers with an error. "
        'Examples: zcomm publish room:1 \'{"text": "hi"}\'; zcomm publish status \'"all is well"\'.'
    )
    publish.add_argument("topic", metavar="TOPIC", help="the name of the topic")
    publish.add_argument("data", metavar="JSON", help="the message, any JSON value")
    publish.add_argument("--key", help="makes it safe to repeat: the same message with the same key is sent once")
    publish.add_argument("--json", action="store_true", help="print the server's answer for programs")
    _declare_server(publish)
    publish.set_defaults(run=send_publish)


def _declare_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="the server's WebSocket address [the one that runs on the data directory]")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="a file that holds the token [ZCOMM_TOKEN, else the operator's, of the data directory]",
    )
    parser.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help="how long to wait [30]")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="the server's data directory [ZCOMM_HOME, else ~/.zolo/zcomm]"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds that somebody may wait")
    return seconds


def print_url(args: argparse.Namespace) -> int:
    """Print where the server of this data directory listens."""
    running = _running(args)
    if running is None:
        print(NO_SERVER, file=sys.stderr)
        return 1
    if not running["websocket"]:
        print(ONLY_BEHIND_A_PROXY, file=sys.stderr)
        return 1
    page = running["page"]
    if page and running["auth"]:
        # Not for an address that needs none: each code is a way in.
        if not args.websocket or args.json:
            page = f"{page}#code={invite(data_directory(os.environ, args.data_dir))}"
    if args.json:
        print(json.dumps({"websocket": running["websocket"], "page": page, "pid": running["pid"]}))
    elif args.websocket or not page:
        print(running["websocket"])
    else:
        print(page)
    return 0


def send_call(args: argparse.Namespace) -> int:
    """Send one command; its result goes to standard output, what went wrong to standard error."""
    return _send(args, *_command(args), lambda result: json.dumps(result, indent=2, ensure_ascii=False))


def send_publish(args: argparse.Namespace) -> int:
    """Publish one message; where it is goes to standard output, what went wrong to standard error."""
    message = {"topic": args.topic, "data": _from_json(args.data)}
    if args.key is not None:
        message["_idempotencyKey"] = args.key

    def told(result: Any) -> str:
        if args.json:
            return json.dumps(result, ensure_ascii=False)
        offset = result.get("offset")
        return f"published to {args.topic}" + ("" if offset is None else f": message {offset}")

    return _send(args, "zPublish", message, told)


def _send(args: argparse.Namespace, key: str, horizontal: Any, shown: Callable[[Any], str]) -> int:
    from zcomm.client.threaded import connect

    url, token = args.url, None
    running = None if url else _running(args)
    if running is not None:
        url = running["websocket"]
    if not url:
        reason = f"{NO_SERVER}, or give its" if running is None else f"{ONLY_BEHIND_A_PROXY}; give that one's"
        print(f"{reason} address with --url", file=sys.stderr)
        return 1
    if args.token_file:
        token = read_text(Path(args.token_file), "--token-file").strip()
    elif os.environ.get("ZCOMM_TOKEN", "").strip():
        token = os.environ["ZCOMM_TOKEN"].strip()
    elif running is None or running["auth"]:
        token = OperatorCredentials.load(operator_path(data_directory(os.environ, args.data_dir))).token
    try:
        with connect(url, token, timeout=args.timeout, reconnect=False) as client:
            result = client.send({"zKey": key, "zHorizontal": horizontal})
    except CommandError as error:
        print(f"zcomm: {error.code}: {error}", file=sys.stderr)
        for name, reason in error.fields.items():
            print(f"  {name}: {reason}", file=sys.stderr)
        return 1
    except (ConnectError, ValueError) as error:
        print(f"zcomm: {redact_url(url)}: {error}", file=sys.stderr)
        return 1
    print(shown(result))
    return 0


def _running(args: argparse.Namespace) -> dict[str, Any] | None:
    """The server that runs on the data directory, of several the one that ``--url`` names; ``None`` without one.

    :raises ConfigError: naming those that run, where it is not known which one is meant; or the file that would tell of
        one, where that is not believed.
    """
    directory = data_directory(os.environ, args.data_dir)
    found = running_servers(directory)
    if not found and (path := disbelieved(directory)):
        raise ConfigError(
            str(path),
            "it is not believed where a server listens: it is a link, another account's, writable for others, or "
            f"damaged; look at it with: ls -l {shlex.quote(str(path))}; a start of the server writes it anew",
        )
    if args.url:
        found = [one for one in found if args.url in _told(one)] or found
    if len(found) > 1 or (args.url and found and args.url not in _told(found[0])):
        several = ", ".join(f"{_told(one)[0]} (pid {one['pid']})" for one in found)
        raise ConfigError("--url", f"these servers run on this data directory: {several}; name the one that is meant")
    return found[0] if found else None


def _told(running: dict[str, Any]) -> list[str]:
    """The addresses of a server, its best one first."""
    told = [running["websocket"], running["page"]]
    # An older zComm may have written it, or somebody else.
    listening = running.get("listening")
    for address in listening if isinstance(listening, list) else ():
        if isinstance(address, dict) and isinstance(address.get("url"), str):
            told.append(address["url"])
    return [address for address in told if address] or [""]


def _command(args: argparse.Namespace) -> tuple[str, Any]:
    """The key and the horizontal; of a form such as ``zFunc(total)``, the key is what stands before the parenthesis."""
    if args.horizontal is None:
        return args.key.partition("(")[0], args.key
    return args.key, _from_json(args.horizontal)


def _from_json(text: str) -> Any:
    """The value of an argument.

    :raises ConfigError: for what is no JSON, with what to write instead.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"there is no {constant} in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        hint = ""
        if text and not set(text) & set("{}[]\"':\\\n"):
            hint = f"; a text needs double quotes of its own: {shlex.quote(json.dumps(text, ensure_ascii=False))[:80]}"
        elif "'" in text:
            hint = "; names and texts are in double quotes, and single ones are around all of it, for the shell"
        raise ConfigError("JSON", f"{shown!r} is not JSON: {error}{hint}") from None
