"""What a caller may take his time with, and how much he may say, on raw sockets to a real service."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import Service, running
from servers import until

from app.api.http_server.http_protocol import CoalescingTransport
from app.models.bank import BankSpec

HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMITS = {"header_s": 0.3, "body_s": 0.3, "max_header_kib": 4}


@pytest.fixture(scope="module")
def service(spec: BankSpec, redis_url: str) -> Iterator[Service]:
    with running(spec, redis_url=redis_url, prediction_cache=False, memory_tier_mib=16, **LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def unhurried(spec: BankSpec, redis_url: str) -> Iterator[Service]:
    """One with the usual limits."""
    with running(spec, redis_url=redis_url, prediction_cache=False, memory_tier_mib=16) as made:
        yield made


@pytest.fixture
def connect(service: Service) -> Callable[[], socket.socket]:
    url = service.client.base_url
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
        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 200")
        caller.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert answer(caller)[0] == 408


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["in one piece", "without an end"])
@pytest.mark.parametrize("size", [5_000, 200_000])
def test_headers_have_a_limit(connect: Callable[[], socket.socket], size: int, end: bytes) -> None:
    with connect() as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"a" * size + end)
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


@pytest.mark.parametrize("target", [b"http:///livez", b"http://a:b:c/", b"http://", b"a"])
def test_a_target_that_is_no_url_is_refused(connect: Callable[[], socket.socket], target: bytes) -> None:
    with connect() as caller:
        caller.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(caller)[0] == 400


def test_two_lengths_of_one_body_are_refused(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert answer(caller)[0] == 400


# -- trailers ------------------------------------------------------------------------------------------


def chunked(body: bytes, trailers: bytes = b"", headers: bytes = b"") -> bytes:
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    return HEAD + headers + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + trailers + b"\r\n"


@pytest.mark.parametrize(
    "trailer",
    [
        b"X-Request-Timeout: 0.000001",
        b"X-Request-Timeout: soon",
        b"X-Request-Id: from-a-trailer",
        b"Content-Type: text/plain",
        b"Expect: 100-continue",
        b"A: b\r\n" * 20 + b"A: b",
    ],
)
def test_trailers_are_no_headers(connect: Callable[[], socket.socket], trailer: bytes) -> None:
    with connect() as caller:
        for _ in range(2):
            caller.sendall(chunked(b'{"texts": "fine"}', trailer + b"\r\n"))
            received = caller.recv(65536)
            assert received.startswith(b"HTTP/1.1 200") and b"from-a-trailer" not in received


@pytest.mark.parametrize(
    "trailer",
    [
        b"Content-Length: 5",
        b"Transfer-Encoding: identity",
        b"transfer-encoding: chunked",
        b"Connection: close",
        b"Connection: Upgrade\r\nUpgrade: h2c",
    ],
)
def test_no_trailer_says_where_a_message_ends(connect: Callable[[], socket.socket], trailer: bytes) -> None:
    with connect() as caller:
        caller.sendall(
            chunked(b'{"texts": "fine"}', trailer + b"\r\n") + b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        assert statuses(everything(caller)) == [400]


@pytest.mark.parametrize("pieces", [1, 50])
@pytest.mark.parametrize("line", [b"X-Small: b\r\n", b"a"], ids=["many", "one without an end"])
def test_trailers_have_a_limit(connect: Callable[[], socket.socket], line: bytes, pieces: int) -> None:
    trailers = b"X-Large: " * (line == b"a") + line * (400_000 // len(line))
    whole = chunked(b'{"texts": "fine"}', trailers)[:-2]
    with connect() as caller:
        try:
            for start in range(0, len(whole), len(whole) // pieces):
                caller.sendall(whole[start : start + len(whole) // pieces])
            status, problem = answer(caller)
        except (ConnectionResetError, BrokenPipeError):
            return  # hung up on before all of it was read
    assert status == 431 and problem["detail"] == "the trailers are larger than 4096 bytes"


def test_a_body_that_never_ends_is_not_answered_in_place_of_an_earlier_request(
    connect: Callable[[], socket.socket],
) -> None:
    slow = json.dumps({"texts": [f"{i} thanks again please " * 100 for i in range(512)]}).encode()
    with connect() as caller:
        first = HEAD + b"Content-Length: %d\r\n\r\n" % len(slow) + slow
        caller.sendall(first + HEAD + b"Content-Length: 100\r\n\r\n{")
        assert statuses(everything(caller)) in ([], [200, 408])


# -- offers to upgrade ---------------------------------------------------------------------------------

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
BODY = b'{"texts": "GET /v1/bank HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"}'
HIDDEN = b"GET /v1/bank HTTP/1.1\r\nHost: localhost\r\n\r\n"


def everything(caller: socket.socket) -> bytes:
    """What comes until the service hangs up, at the latest a few seconds after its last reply."""
    received = b""
    while piece := caller.recv(65536):
        received += piece
    return received


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000], ids=["byte by byte", "by sevens", "by hundreds", "in one piece"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("offer", [OFFER, b"Connection: upgrade\r\nUpgrade: websocket\r\nEmpty:\r\n"])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_read(
    unhurried: Service, size: int, framing: str, offer: bytes
) -> None:
    url = unhurried.client.base_url
    plain = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    last = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    offering = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    if framing == "chunked":
        offering = chunked(BODY, headers=offer)
    sent = offering + plain + offering + last
    with socket.create_connection((url.host, url.port), timeout=20) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            caller.sendall(sent[start : start + size])
        received = everything(caller)
    assert statuses(received) == [200] * 4


def test_no_body_of_a_request_that_offers_an_upgrade_is_read_as_a_request(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(HEAD + OFFER + b"Content-Length: %d\r\n\r\n" % len(HIDDEN))
        time.sleep(0.1)
        caller.sendall(HIDDEN)
        received = everything(caller)
    assert statuses(received) == [400] and b"fingerprint" not in received


def test_an_offer_without_a_body_is_ignored_too(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall((b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"\r\n") * 50)
        assert statuses(everything(caller)) == [200] * 50


def test_headers_that_offer_an_upgrade_have_a_limit(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(HEAD + OFFER + b"X-Large: " + b"a" * 5_000 + b"\r\n\r\n")
        assert answer(caller)[0] == 431


def test_this_is_no_proxy(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        status, problem = answer(caller)
    assert status == 400 and problem["detail"] == "this is no proxy: CONNECT is not served"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("more", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]])
def test_curl_may_offer_http_2(unhurried: Service, more: list[str]) -> None:
    url = unhurried.client.base_url.join("/v1/predict")
    body = json.dumps({"texts": "fine"})
    command = ["curl", "-sS", "--http2", "-H", "Content-Type: application/json", *more, "-d", body, str(url), str(url)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.count('"predictions"') == 2, done.stdout


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_the_client_of_the_jdk_may_offer_http_2(unhurried: Service) -> None:
    url = unhurried.client.base_url.join("/v1/predict")
    bodies = [json.dumps({"texts": text}) for text in ("fine", "late " * 3_000, "fine")]
    client = Path(__file__).parent / "JdkClient.java"
    done = subprocess.run(
        ["java", str(client), str(url), *bodies], capture_output=True, text=True, timeout=300, check=True
    )
    assert [line[:18] for line in done.stdout.splitlines()] == ['200 {"predictions"'] * 3, done.stdout


# -- every connection has a timer ----------------------------------------------------------------------


def test_a_line_break_after_a_reply_does_not_keep_a_connection(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 200")
        caller.sendall(b"\r\n")
        assert caller.recv(65536) == b"", "nothing was asked, so nothing is answered"


PIECES = [
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + OFFER + b"\r\n",
    HEAD + b"Content-Length: 17\r\n\r\n" + b'{"texts": "fine"}',
    HEAD + OFFER + b"Content-Length: 17\r\n\r\n" + b'{"texts": "fine"}',
    HEAD + b"Expect: 100-continue\r\nContent-Length: 17\r\n\r\n",
    HEAD + b"Content-Length: 99999999\r\n\r\n",
    chunked(b'{"texts": "fine"}', b"A: b\r\n"),
    chunked(b'{"texts": "fine"}')[:-2],
    b"GET /livez HT",
    b"\r\n",
    b"\r\n\r\n",
    b'{"texts": "fine"}',
]


def test_no_connection_stays_open_without_a_timer(connect: Callable[[], socket.socket]) -> None:
    """Whatever callers have said when they fall silent, all of them are let go."""
    chooser = random.Random(7)
    said: dict[socket.socket, list[bytes]] = {connect(): [] for _ in range(150)}
    for _ in range(4):
        for caller, words in said.items():
            words.append(chooser.choice([*PIECES, b""]))
            try:
                caller.sendall(words[-1])
            except (BrokenPipeError, ConnectionResetError):
                continue
        time.sleep(0.1)
    for caller, words in said.items():
        with caller:
            try:
                everything(caller)
            except ConnectionResetError:
                continue
            except TimeoutError:
                raise AssertionError(f"still open after {words}") from None


# -- callers who do not read ---------------------------------------------------------------------------

READ = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"


def small(url: object) -> socket.socket:
    """A caller whose machine takes little that it does not read."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.settimeout(60)
    caller.connect((url.host, url.port))  # type: ignore[attr-defined]
    return caller


def test_who_does_not_read_a_reply_is_let_go(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec, write_s=1)
    size = len(service.client.get("/openapi.json").content)
    with ExitStack() as stack:
        callers = [stack.enter_context(small(service.client.base_url)) for _ in range(20)]
        for caller in callers:
            caller.sendall(READ * 100)
        until(lambda: "tween_unread_connections_total 20.0" in service.client.get("/metrics").text, 60)
        for caller in callers:
            with suppress(ConnectionResetError):
                assert len(everything(caller)) < 100 * size
    assert service.client.get("/livez").status_code == 200


def test_who_reads_slowly_gets_all(serve: Callable[..., Service], spec: BankSpec) -> None:
    service = serve(spec, write_s=2)
    size = len(service.client.get("/openapi.json").content)
    with small(service.client.base_url) as caller:
        caller.sendall(READ * 60)
        received = 0
        ends = time.monotonic() + 7  # several times as long as may pass without any progress
        while time.monotonic() < ends:
            received += len(caller.recv(8192))
            time.sleep(0.05)
        while received < 60 * size:
            piece = caller.recv(1 << 20)
            assert piece, "cut, though it was reading"
            received += len(piece)
    assert "tween_unread_connections_total 0.0" in service.client.get("/metrics").text


def test_replies_tell_browsers_to_be_careful(service: Service) -> None:
    headers = service.client.get("/v1/bank").headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"] and "server" not in headers


def test_a_reply_comes_in_one_piece(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        for _ in range(50):  # in two pieces, the reader would be awake in time for the first at least once
            caller.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = caller.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and json.loads(body)


def test_a_reply_without_a_body_is_not_held_back(connect: Callable[[], socket.socket]) -> None:
    with connect() as caller:
        caller.sendall(b"HEAD /v1/bank HTTP/1.1\r\nHost: localhost\r\n\r\n")
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
        together = CoalescingTransport(transport, loop)
        together.write(b"head")
        with pytest.raises(BlockingIOError):
            there.recv(1)
        for _ in range(100):
            together.write(b"x" * 1024)
        assert there.recv(10) == b"headxxxxxx"
        together.close()
        there.close()

    asyncio.run(main())
