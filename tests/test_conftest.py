"""The tools of the tests are tested too: a leak check that finds nothing would be worse than none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import hypothesis
import pytest
import pytest_twisted
from support.leaks import Snapshot, left_behind
from support.rawclient import Frame, Opcode, Reader, Response, accept_key, build_frame, close_payload, handshake
from support.waiting import wait_until, wait_until_blocking
from twisted.internet import reactor
from twisted.internet.task import LoopingCall


def test_no_example_of_hypothesis_is_timed():
    """In whatever process the test runs: a busy machine is slow, and that is no failure."""
    assert hypothesis.settings().deadline is None


def test_a_timer_that_stays_is_found():
    """A delayed call that nobody cancelled is named by what it would have called."""
    before = Snapshot.take(reactor)
    call = reactor.callLater(3600, print)
    try:
        assert left_behind(before, Snapshot.take(reactor)) == ["timers: {'builtins.print': 1}"]
    finally:
        call.cancel()
    assert left_behind(before, Snapshot.take(reactor)) == []


def test_a_periodic_call_that_was_there_before_is_not_a_leak():
    """A looping call that is scheduled anew is the same thing as before."""
    loop = LoopingCall(int)
    loop.start(3600)
    before = Snapshot.take(reactor)
    loop.reset()
    assert left_behind(before, Snapshot.take(reactor)) == []
    loop.stop()


def test_a_thread_a_child_and_a_socket_that_stay_are_found():
    """Each kind has its own line."""
    before = Snapshot.take(reactor)
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="stays")
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with socket.socket():
        lines = wait_until_blocking(
            lambda: len(found := left_behind(before, Snapshot.take(reactor))) == 3 and found,
            "three kinds of leak",
        )
    child.communicate(b"\n")
    ended.set()
    thread.join()
    assert lines[0] == "threads: {'stays': 1}"
    assert lines[1].startswith("children: ")
    assert lines[2] == "sockets: 1 more than before"
    assert left_behind(before, Snapshot.take(reactor)) == []


@pytest_twisted.ensureDeferred
async def test_waiting_ends_with_the_condition_or_says_what_did_not_come():
    """Both forms return the value, and fail with the name of what they waited for."""
    calls = []
    assert await wait_until(lambda: calls.append(1) or len(calls) > 2 and "done", "three calls") == "done"
    with pytest.raises(TimeoutError, match="the moon"):
        await wait_until(lambda: False, "the moon", timeout=0.05)
    with pytest.raises(TimeoutError, match="the moon"):
        wait_until_blocking(lambda: False, "the moon", timeout=0.05)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
def test_frames_are_read_as_they_were_built(length: int):
    """Each of the three forms of the length goes through, in any pieces."""
    payload = bytes(i % 251 for i in range(length))
    data = build_frame(Opcode.BINARY, payload, mask=None)
    reader = Reader(expect_response=False)
    found = [item for byte in (data[:1], data[1:5], data[5:]) for item in reader.feed(byte)]
    assert found == [Frame(Opcode.BINARY, payload)]


def test_a_masked_frame_is_the_example_of_the_rfc():
    """RFC 6455 section 5.7: a single-frame masked text message "Hello"."""
    assert build_frame(Opcode.TEXT, b"Hello") == bytes.fromhex("818537fa213d7f9f4d5158")


def test_the_accept_key_is_the_example_of_the_rfc():
    """RFC 6455 section 1.3."""
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_response_and_the_frames_behind_it_come_in_order():
    """The head is taken apart once; a close frame shows its code and reason."""
    reader = Reader()
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    response, frame = reader.feed(head + build_frame(Opcode.CLOSE, close_payload(1008, "Invalid origin"), mask=None))
    assert isinstance(response, Response) and response.status == 101 and response.header("upgrade") == "websocket"
    assert (frame.close_code, frame.close_reason) == (1008, "Invalid origin")


def test_a_handshake_has_what_it_was_given_and_not_what_it_was_denied():
    """Headers can be added as they are and the usual ones left out."""
    lines = handshake("here", "/?a=1", token="t", origin="http://o", headers=[("X", "y")], without=["Upgrade"]).split(
        b"\r\n"
    )
    assert lines[0] == b"GET /?a=1 HTTP/1.1"
    assert b"Host: here" in lines and b"Authorization: Bearer t" in lines and b"Origin: http://o" in lines
    assert b"X: y" in lines and b"Upgrade: websocket" not in lines
