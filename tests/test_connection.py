"""What a caller may take his time with, and how much he may say, on raw sockets to a real service."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import pytest

from app.api.connection import Together
from app.models.bank import BankSpec

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LIMITS = {"header_s": 0.3, "body_s": 0.3, "max_header_kib": 4}


@pytest.fixture
def connect(serve: Callable, spec: BankSpec) -> Callable[[], socket.socket]:
    url = serve(spec, **LIMITS).client.base_url
    return lambda: socket.create_connection((url.host, url.port), timeout=20)


def answer(caller: socket.socket) -> tuple[int, dict]:
    """Status and body of what comes until the service hangs up; 0 if nothing comes."""
    received = b""
    while piece := caller.recv(65536):
        received += piece
    if not received:
        return 0, {}
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head and b"connection: close" in head.lower() and b"x-request-id: " in head
    return int(head.split()[1]), json.loads(body)


def test_headers_must_arrive_in_time(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        status, problem = answer(caller)
    assert status == 408 and problem["detail"] == "the headers did not arrive within 0.3 seconds"


def test_a_byte_now_and_then_does_not_stretch_the_time(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.settimeout(0.1)
        caller.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        for _ in range(100):
            try:
                assert caller.recv(4096).startswith(b"HTTP/1.1 408")
                return
            except TimeoutError:
                caller.sendall(b"a")
    raise AssertionError("the service is still waiting")


def test_who_says_nothing_is_left(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        assert answer(caller) == (0, {})


def test_a_body_must_arrive_in_time(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        status, problem = answer(caller)
    assert status == 408 and problem["detail"] == "the body did not arrive within 0.3 seconds"


def test_a_second_request_has_its_own_time(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 200")
        caller.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert answer(caller)[0] == 408


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["in one piece", "without an end"])
@pytest.mark.parametrize("size", [5_000, 200_000])
def test_headers_have_a_limit(connect: Callable[[], socket.socket], size: int, end: bytes) -> None:
    with connect() as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * size + end)
        try:
            status, problem = answer(caller)
        except ConnectionResetError:
            assert size > 65_536  # hung up on before all of it was read
            return
    assert status == 431 and problem["detail"] == "the headers are larger than 4096 bytes"


def test_many_small_headers_are_as_large_as_one(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 2_000 + b"\r\n")
        assert answer(caller)[0] == 431


def test_a_body_larger_than_the_headers_may_be_comes_through(connect: Callable[[], socket.socket]) -> None:
    body = json.dumps({"texts": ["thanks " * 2_000], "recipe": "base"}).encode()
    with connect() as caller:
        caller.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert caller.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_not_http_gets_a_problem(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        status, problem = answer(caller)
    assert status == 400 and problem["title"] == "Bad Request"


def test_two_lengths_of_one_body_are_refused(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert answer(caller)[0] == 400


def test_replies_tell_browsers_to_be_careful(serve: Callable, spec: BankSpec) -> None:
    headers = serve(spec).client.get("/v1/bank").headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and "server" not in headers


def test_a_reply_comes_in_one_piece(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        for _ in range(50):  # in two pieces, the reader would be awake in time for the first at least once
            caller.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            head, _, body = caller.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and json.loads(body)


def test_a_reply_without_a_body_is_not_held_back(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"HEAD /v1/bank HTTP/1.1\r\nHost: x\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 ")


def test_who_waits_to_be_told_to_go_on_is_told(connect: Callable[[], socket.socket]) -> None:
    body = b'{"texts": "fine"}'
    with connect() as caller:
        caller.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert caller.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(body)
        assert caller.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_long_body_is_sent_on_while_the_loop_does_not_turn() -> None:
    async def main() -> None:
        loop, (here, there) = asyncio.get_running_loop(), socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=here)
        there.setblocking(False)
        together = Together(transport, loop)
        together.write(b"head")
        with pytest.raises(BlockingIOError):
            there.recv(1)
        for _ in range(100):
            together.write(b"x" * 1024)
        assert there.recv(10) == b"headxxxxxx"
        together.close()
        there.close()

    asyncio.run(main())
