"""Showing things to people and asking them, over loopback, with the Python and the JavaScript client."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from support.served import Served
from support.serverprocess import CHECKOUT, clean_environ
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.utils import getProcessOutputAndValue

from zcomm.errors import CommandTimeout, ConfigError, Declined, Unavailable

Join = Callable[..., Any]

FORM = {"kind": "form", "label": "You", "fields": {"name": "Your name", "sure": {"kind": "confirm", "label": "Sure?"}}}


async def failure_of(deferred: Deferred[Any]) -> Exception:
    """What a Deferred fails with."""
    try:
        result = await deferred
    except Exception as error:
        return error
    raise AssertionError(f"it did not fail: {result!r}")


def newest(served: Served) -> Any:
    """The server's side of the client that came last."""
    return max(served.bifrost.clients, key=lambda client: client.id)


@pytest_twisted.ensureDeferred
async def test_display(join: Join, served: Served):
    """To one client, or to all."""
    seen: dict[str, list[Any]] = {"first": [], "second": []}
    first = await join()
    first.on_display(seen["first"].append)
    one = newest(served)
    second = await join()
    second.on("display", seen["second"].append)
    assert served.bifrost.display("header", {"text": "Hi"}, to=one) == 1
    assert served.bifrost.display("table", [[1]]) == 2
    await wait_until(lambda: len(seen["first"]) == 2 and seen["second"], "what is shown")
    assert [(m["display"], m["data"]) for m in seen["first"]] == [("header", {"text": "Hi"}), ("table", [[1]])]
    assert [(m["display"], m["data"]) for m in seen["second"]] == [("table", [[1]])]


@pytest_twisted.ensureDeferred
async def test_every_kind_of_prompt(join: Join, served: Served):
    """Text, password, choice, confirmation, form: each answer is the one that was given."""
    client = await join()
    person = newest(served)
    answers = {
        "text": "Alice",
        "password": "hunter2",
        "choice": 2,
        "confirm": False,
        "form": {"name": "A", "sure": True},
    }
    client.on_ask(lambda prompt: answers[prompt["kind"]])
    for prompt in (
        "Your name",
        {"kind": "password"},
        {"kind": "choice", "choices": [1, 2]},
        {"kind": "confirm", "label": "Sure?"},
        FORM,
    ):
        kind = prompt if isinstance(prompt, str) else prompt["kind"]
        assert await served.bifrost.ask(person, prompt) == answers.get(kind, "Alice")
    assert len(served.bifrost.prompts) == 0 and "hunter2" not in served.log_text


@pytest_twisted.ensureDeferred
async def test_an_answer_that_does_not_fit_is_asked_for_again(join: Join, served: Served):
    """The person sees what was wrong; the same wrong answer twice declines."""
    client = await join()
    person = newest(served)
    prompts: list[Any] = []

    async def answer(prompt: dict[str, Any]) -> Any:
        prompts.append(prompt)
        return {"name": "Alice", "sure": True} if len(prompts) == 3 else {"name": "", "n": len(prompts)}

    client.on_ask(answer)
    assert await served.bifrost.ask(person, FORM) == {"name": "Alice", "sure": True}
    assert prompts[1]["error"]["fields"] == {
        "name": "An answer is needed",
        "n": "is not asked for",
        "sure": "Answer with true or false",
    }
    client.on_ask(lambda prompt: "never one")
    assert isinstance(await failure_of(served.bifrost.ask(person, {"kind": "confirm"})), Declined)


@pytest_twisted.ensureDeferred
async def test_declined(join: Join, served: Served):
    """By a client that answers nothing, that has nobody to answer, or whose program fails."""
    client = await join()
    person = newest(served)
    assert isinstance(await failure_of(served.bifrost.ask(person, "Name")), Declined)
    client.on_ask(lambda prompt: None)
    assert isinstance(await failure_of(served.bifrost.ask(person, "Name")), Declined)
    client.on_ask(lambda prompt: 1 / 0)
    assert isinstance(await failure_of(served.bifrost.ask(person, "Name")), Declined)
    served.forget()


@pytest_twisted.ensureDeferred
async def test_taken_back(join: Join, served: Served):
    """By the program, or by time: the person's dialog closes, and an answer comes to nothing."""
    client = await join()
    person = newest(served)
    closed: list[Deferred[Any]] = []

    def answer(prompt: dict[str, Any]) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred(closed.append)
        return waiting

    client.on_ask(answer)
    asked = served.bifrost.ask(person, "Name")
    await wait_until(lambda: len(client._prompts), "the prompt")
    asked.cancel()
    assert isinstance(await failure_of(asked), CancelledError)
    await wait_until(lambda: len(closed) == 1, "the end of the prompt")
    error = await failure_of(served.bifrost.ask(person, "Name", timeout=0.05))
    assert isinstance(error, CommandTimeout) and str(error) == "No answer within 0.05 s"
    await wait_until(lambda: len(closed) == 2, "the end of the second prompt")
    assert len(served.bifrost.prompts) == 0 and not person.prompts


@pytest_twisted.ensureDeferred
async def test_the_client_leaves(join: Join, served: Served):
    """Every open prompt fails at once, and so does one that is asked of somebody who is gone."""
    client = await join()
    person = newest(served)
    client.on_ask(lambda prompt: Deferred())
    asked = [served.bifrost.ask(person, "Name"), served.bifrost.ask(person, FORM)]
    await wait_until(lambda: len(client._prompts) == 2, "the prompts")
    await client.disconnect()
    for prompt in asked:
        assert isinstance(await failure_of(prompt), Unavailable)
    assert isinstance(await failure_of(served.bifrost.ask(person, "Name")), Unavailable)
    try:
        served.bifrost.ask(person, {"kind": "shell"})
    except ConfigError:
        pass
    else:
        raise AssertionError("it was asked")
    assert len(served.bifrost.prompts) == 0 and not person.prompts


@pytest_twisted.ensureDeferred
async def test_only_who_was_asked_can_answer(join: Join, served: Served):
    """Once, with a value; what the server does with it is not the client's to say."""
    client, stranger = await served.client(), await served.client()
    person = [one for one in served.bifrost.clients if one.peer == newest(served).peer][-2:]
    asked = served.bifrost.ask(person[0], "Name")
    number = (await client.next_json())["askId"]
    answer = {"askId": number, "value": "Mallory", "onSubmit": "zFunc(wrong)"}
    assert (await stranger.call("zAnswer", answer))["code"] == "not_found"
    for wrong in (None, [], {"askId": 7}, {"askId": "?", "value": "x"}, "zAnswer"):
        assert (await client.call("zAnswer", wrong))["code"] == "not_found"
    assert (await client.call("zAnswer", {"askId": number}))["code"] == "invalid"
    assert (await client.call("zAnswer", {"askId": number, "cancelled": 1}))["code"] == "invalid"
    assert (await client.call("zAnswer", {**answer, "value": "Alice"}))["result"] is True
    assert await asked == "Alice"
    assert (await client.call("zAnswer", answer))["code"] == "not_found"
    second = served.bifrost.ask(person[0], "Name")
    number = (await client.next_json())["askId"]
    assert (await client.call("zAnswer", {"askId": number, "cancelled": True}))["result"] is True
    assert isinstance(await failure_of(second), Declined)
    served.forget()


@pytest_twisted.ensureDeferred
async def test_a_command_that_asks_outlives_its_time(join: Join, served: Served):
    """While a person thinks the command's own time stands still, and its caller's too."""
    client = await join(timeout=0.05)
    thinking: Deferred[str] = Deferred()
    client.on_ask(lambda prompt: thinking)

    @served.bifrost.command("ask_me")
    async def ask_me(horizontal: Any, person: Any) -> str:
        return await served.bifrost.ask(person, "Name")

    waiting = client.send({"zKey": "ask_me"})
    late: Deferred[None] = Deferred()
    served.reactor.callLater(0.2, late.callback, None)
    await late
    assert not waiting.called
    thinking.callback("Alice")
    assert await waiting == "Alice"


@pytest_twisted.ensureDeferred
async def test_functions_that_ask_and_report(join: Join, served: Served):
    """From a coroutine on the reactor and from a worker thread alike."""
    functions = served.comm.program.functions

    @functions.register
    async def on_the_reactor(*, ask: Any, progress: Any) -> list[Any]:
        progress(0.5)
        return [await ask("Name"), await ask({"kind": "confirm"})]

    @functions.register
    def in_a_thread(*, ask: Any, progress: Any) -> list[Any]:
        answers = [ask("Name"), ask({"kind": "confirm"})]
        for wrong in ("half", True, None):
            try:
                progress(wrong)
            except TypeError:
                answers.append("TypeError")
        progress(1, 2, "half")
        return answers

    client = await join()
    client.on_ask(lambda prompt: "Alice" if prompt["kind"] == "text" else True)
    told: list[Any] = []
    assert await client.zFunc("on_the_reactor", on_progress=lambda *step: told.append(step)) == ["Alice", True]
    assert await client.zFunc("in_a_thread", on_progress=lambda *step: told.append(step)) == [
        "Alice",
        True,
        *["TypeError"] * 3,
    ]
    assert told == [(0.5, None, ""), (1, 2, "half")]


SCRIPT = """\
import { createClient } from './zBifrost.js';
const client = await createClient(process.argv[2], process.argv[3]);
const shown = new Promise((resolve) => client.onDisplay((data) => resolve(data)));
const form = [{}, { name: 'A', sure: true }];
const answers = { text: ['', 'Alice'], password: ['hunter2'], choice: [[9], [2, 1]], confirm: [true], form };
const errors = [];
client.onAsk((prompt, { error }) => {
  if (error) errors.push(error.message);
  return answers[prompt.kind].shift();
});
const steps = [];
const onProgress = ({ done, total, text }) => steps.push([done, total, text]);
const result = await client.call('interview', [], { onProgress });
console.log(JSON.stringify({ result, errors, steps, shown: await shown }));
client.disconnect();
"""


@pytest_twisted.ensureDeferred
async def test_the_javascript_client(served: Served, tmp_path: Path):
    """All kinds of prompts, a display and progress in zBifrost.js; what does not fit is asked for again."""

    @served.comm.program.functions.register
    async def interview(*, ask: Any, progress: Any, client: Any) -> list[Any]:
        kinds = [
            "Name",
            {"kind": "password"},
            {"kind": "choice", "choices": [1, 2], "multiple": True},
            {"kind": "confirm"},
            FORM,
        ]
        answers = []
        for number, prompt in enumerate(kinds, 1):
            answers.append(await ask(prompt))
            progress(number, len(kinds), "asked")
        served.bifrost.display("text", {"done": True}, to=client)
        return answers

    shutil.copy(CHECKOUT / "js" / "zBifrost.js", tmp_path)
    os.symlink(CHECKOUT / "js" / "node_modules", tmp_path / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "ask.js").write_text(SCRIPT)
    output, errors, status = await getProcessOutputAndValue(
        shutil.which("node"),
        ["ask.js", served.bifrost.url, served.admin],
        env=clean_environ(tmp_path),
        path=str(tmp_path),
    )
    assert status == 0, errors
    told = json.loads(output)
    assert told["result"] == ["Alice", "hunter2", [2, 1], True, {"name": "A", "sure": True}]
    assert told["errors"] == ["An answer is needed", "Answer with one of the choices", "The form is not complete"]
    # Those between the first and the last are told as the pace allows.
    steps = [[number, 5, "asked"] for number in range(1, 6)]
    assert (told["steps"][0], told["steps"][-1], told["shown"]) == (steps[0], steps[-1], {"done": True})
    assert told["steps"] == [step for step in steps if step in told["steps"]]
