"""Hostile requests drawn at random, by class, as the bytes that a caller sends; the same number gives the same bytes.

Every class is a function from a source of chance and what there is to attack; `ATTACKS` at the foot lists them.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal

from hostile import BODIES, CONTENT_TYPES, SOUND, Hostile, filled, places, replaced, requests, spellings

End = Literal["read", "half", "gone", "deaf"]
"""What a caller does once all is sent: reads until the service hangs up, says first that no more comes, hangs up at
once, or stays and reads nothing."""


@dataclass(frozen=True)
class Attack:
    """What one connection brings; pieces are sent one by one."""

    kind: str
    why: str
    pieces: tuple[bytes, ...]
    end: End = "read"


@dataclass(frozen=True)
class Aim:
    """What there is to attack: the specification, the calls of every route, and a header line with each role's key."""

    specification: dict[str, Any]
    calls: Sequence[tuple[str, str]]
    keys: dict[str, bytes]

    @cached_property
    def listed(self) -> list[Hostile]:
        """All that the list made by hand has for these routes."""
        return list(requests(self.specification))

    @cached_property
    def sound(self) -> list[tuple[str, str, Any]]:
        """Method, path and body of requests that nothing is wrong with."""
        return [(*operation.split(" "), body) for operation, bodies in SOUND.items() for body in bodies]


def attack(aim: Aim, seed: int, number: int) -> Attack:
    """The attack of that number. Classes take turns."""
    chooser = Random(f"{seed}:{number}")
    kinds = list(ATTACKS)
    kind = kinds[number % len(kinds)]
    return ATTACKS[kind](chooser, aim)


def message(method: str, target: str, headers: Sequence[bytes], body: bytes) -> bytes:
    """A request that ends its connection. `headers`: lines."""
    head = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"Host: localhost", b"Connection: close", *headers]
    if body or method in ("POST", "PUT", "PATCH"):
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", body])


# -- types, nesting, lengths ---------------------------------------------------------------------------


def types(chooser: Random, aim: Aim) -> Attack:
    """Something of the list made by hand: wrong types everywhere, odd paths, queries and headers."""
    one = chooser.choice(aim.listed)
    headers = [key_of(chooser, aim), *(name + b": " + value for name, value in one.headers)]
    why = f"{one.method} {one.target[:60]}, {one.why}"
    return Attack("types", why, (message(one.method, one.target, headers, one.body),))


def nesting(chooser: Random, aim: Aim) -> Attack:
    """JSON to 100,000 levels, in place of a body or of anything in it."""
    depth = int(10 ** chooser.uniform(0, 5))
    opening, closing = chooser.choice(
        [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"t":', b"}]"), (b'["x",', b"]"), (b'{"t":{"angry":', b"}}")]
    )
    inside = chooser.choice([b"", b"1", b'"a"', b"null", b"[]", b'"' + b"[" * 1_000 + b'"'])
    value = opening * depth + inside + chooser.choice([closing * depth, closing * (depth // 2), b""])
    return in_place(chooser, aim, "nesting", f"{opening.decode()} {depth} times", value)


SPECIAL = [
    *("a", " ", "\n", "@", "x@auto ", "@auto", "0", "9", ".", "-", "+", ";", ":", "..", "%", "\\", '"', "/", "<cls>"),
    *(
        "[",
        "(",
        "\u0301",
        "é",
        "文",
        "😀",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\ud800",
        "angry@0.1+",
        "exp:",
        "linear:",
        "e9",
    ),
    *("word ", "a,", "a\n", "'"),
]
"""What texts are made of that are repeated a million times."""
SMALL = [b'"a"', b'"angry@0.1"', b"null", b"1", b"1e9", b"[]", b"{}", b'["a","b"]', b'{"text":"a","label":0}', b"true"]
NAMED = [
    "X-Tween-Unit",
    "X-Tween-Actor",
    "From",
    "X-Request-Id",
    "X-Request-Timeout",
    "Accept",
    "traceparent",
    "Cookie",
]
NAMED += [
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Origin",
    "Accept-Encoding",
    "Range",
    "If-None-Match",
    "Idempotency-Key",
]


def lengths(chooser: Random, aim: Aim) -> Attack:
    """Texts of up to a million characters, lists, objects and numbers as long, and what stands outside of bodies."""
    count, word = int(10 ** chooser.uniform(1, 6)), chooser.choice(SPECIAL)
    what = chooser.choice(["text", "text", "list", "list", "object", "number", "path", "query", "header", "body"])
    why = f"{what} of {count} times {word!r}"
    if what == "text":
        return in_place(chooser, aim, "lengths", why, json.dumps(word * (count // len(word) + 1)).encode())
    if what == "list":
        entry = chooser.choice(SMALL)
        why = f"list of {count} times {entry.decode()}"
        return in_place(chooser, aim, "lengths", why, b"[" + b",".join([entry] * min(count, 400_000)) + b"]")
    if what == "object":
        why = f"object of {count} fields"
        entries = (b'"%d":1' % i for i in range(min(count, 200_000)))
        return in_place(chooser, aim, "lengths", why, b"{" + b",".join(entries) + b"}")
    if what == "number":
        digits = chooser.choice([b"9" * count, b"0." + b"1" * count, b"1e" + b"9" * count, b"-" + b"0" * count])
        return in_place(chooser, aim, "lengths", why, digits)
    if what == "body":
        method, path, _ = chooser.choice(aim.sound)
        body = chooser.choice([b" ", b"[", b'"', b"\n", b"a"]) * chooser.randrange(4_000_000, 6_000_000)
        return Attack("lengths", f"{method} {path}: {why}", (message(method, filled(path), plain(chooser, aim), body),))
    return outside_of_bodies(chooser, aim, what, min(count, 70_000))


def outside_of_bodies(chooser: Random, aim: Aim, what: str, count: int) -> Attack:
    method, path = chooser.choice(aim.calls)
    letters = chooser.choice(["a", "%41", "%E6%96%87", "%CC%81", "/", "..%2f", "&a=", "@", "9"])
    long = letters * (count // len(letters) + 1)
    headers = plain(chooser, aim)
    target = filled(path)
    if what == "path":
        target = re.sub(r"\{[^}]+\}", lambda _: long, path) if "{" in path else path + long
    elif what == "query":
        target += f"?{chooser.choice(['a', 'version', 'since', 'limit', 'unit', 'data', 'format'])}={long}"
    else:
        headers.append(f"{chooser.choice(NAMED)}: {long}".encode())
    return Attack("lengths", f"{method} {path}: {what} of {count}", (message(method, target, headers, b""),))


# -- encodings -----------------------------------------------------------------------------------------

BYTES = [
    *(b"\xff\xfe", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\x80"),
    *(b"\x00", b"\x1b[2J", b"\x7f", b"\xe2\x80\xa8", b"\xef\xbb\xbf", "é".encode("latin-1"), "文".encode("gbk")),
    *(b"%ff", b"%", b"%e5%ae", b"%00", b"%0a", b"%u0041", b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\x41", b"\\"),
]
CODINGS = [b"gzip", b"deflate", b"br", b"zstd", b"identity", b"gzip, gzip", b"x-gzip", b"chunked", b"", b"\xff"]
CHARSETS = ["utf-8", "utf-16", "utf-32", "utf-8-sig", "utf-16-le", "utf-7", "cp037"]


def encodings(chooser: Random, aim: Aim) -> Attack:
    """Bytes that are no UTF-8, halves of characters, other encodings, and bodies that are not as their headers say."""
    method, path, sound = chooser.choice(aim.sound)
    kind = chooser.choice(CONTENT_TYPES) if chooser.random() < 0.2 else "application/json"
    headers = [key_of(chooser, aim)]
    if kind is not None:
        headers.append(f"Content-Type: {kind}".encode("latin-1"))
    bad = b"".join(chooser.choices(BYTES, k=chooser.randrange(1, 4)))
    body = replaced(sound, chooser.choice(list(places(sound))), b'"' + bad + b'"')
    way = chooser.choice(["bytes", "charset", "compressed", "header", "list"])
    if way == "charset":
        charset = chooser.choice(CHARSETS)
        way, body = f"{way} {charset}", json.dumps(sound).encode(charset, "replace")
    elif way == "compressed":
        coding = chooser.choice(CODINGS)
        headers.append(b"Content-Encoding: " + coding)
        way, body = f"{way} {coding!r}", compressed(chooser, json.dumps(sound).encode())
    elif way == "header":
        headers.append(chooser.choice(NAMED).encode() + b": " + bad.replace(b"\x00", b""))
    elif way == "list":
        body = chooser.choice(BODIES)
    return Attack("encodings", f"{method} {path}: {way} {bad!r}", (message(method, filled(path), headers, body),))


def compressed(chooser: Random, content: bytes) -> bytes:
    """Content that is compressed, or cut, or none at all; or ten megabytes of nothing, in ten kilobytes."""
    return chooser.choice([gzip.compress(content), zlib.compress(content), gzip.compress(content)[:-9], content, BOMB])


BOMB = gzip.compress(bytes(10_000_000))

# -- roles ---------------------------------------------------------------------------------------------

METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get", "PRI", "QUERY"]


def roles(chooser: Random, aim: Aim) -> Attack:
    """Every route by every role, with its path spelt otherwise, by its own and by other methods."""
    method, path = chooser.choice(aim.calls)
    if chooser.random() < 0.3:
        method = chooser.choice(METHODS)
    target = filled(path)
    if chooser.random() < 0.8:
        target = chooser.choice(list(spellings(target)))
    bodies = SOUND.get(f"{method} {path}", [{}])
    role = chooser.choice(list(aim.keys))
    key = aim.keys[role]
    if chooser.random() < 0.2:
        key = chooser.choice(
            [b"Authorization: Bearer", b"Authorization: Basic dTpw", key[:-1], key + b" x", key.upper()]
        )
    headers = [key or b"X-None: 1", b"Content-Type: application/json"]
    body = json.dumps(chooser.choice(bodies)).encode() if method in ("POST", "PUT", "PATCH") else b""
    return Attack("roles", f"{role}: {path}, as {method} {target}", (message(method, target, headers, body),))


# -- framing -------------------------------------------------------------------------------------------

TEXT = b'{"texts": "fine"}'
REQUEST_LINES = [
    *(b"GET /livez", b"GET /livez HTTP/0.9", b"GET /livez HTTP/1.0", b"GET /livez HTTP/2.0", b"GET /livez HTTP/1.10"),
    *(b"GET  /livez HTTP/1.1", b"GET\t/livez\tHTTP/1.1", b"get /livez HTTP/1.1", b"GET livez HTTP/1.1", b"GET"),
    *(b"GET http://elsewhere/livez HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT localhost:80 HTTP/1.1", b""),
    *(b"GET /livez#x HTTP/1.1", b"GET /\xff\x80 HTTP/1.1", b"GET /a b HTTP/1.1", b"A" * 9_000 + b" / HTTP/1.1"),
    *(b"PRI * HTTP/2.0\r\n\r\nSM", b"GET //livez HTTP/1.1", b"GET http:///livez HTTP/1.1", b"GET ?x HTTP/1.1"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]
LENGTHS = [
    *(
        b"17",
        b"+17",
        b"17, 17",
        b"-1",
        b"0x11",
        b"1e1",
        b"017",
        b"",
        b" ",
        b"17 17",
        b"1" * 30,
        b"16",
        b"18",
        b"99999999",
    ),
    *(b"17\t", b"\xb2", b"17;", b"0"),
]
TRANSFERS = [
    *(b"chunked", b"identity", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"xchunked", b"chunked\x0b"),
    *(b"\tchunked", b"Chunked", b"chunked;q=1", b"", b"chunked,", b'"chunked"'),
]
LINES = [
    *(b" folded: b", b"\tfolded", b"A : b", b": b", b"no colon", b"A: b\nC: d", b"A: b\rC: d", b"A\x00: b", b"A: \x00"),
    *(
        b"A: \xff\xfe",
        b"Expect: 100-continue",
        b"Expect: 200-ok",
        b"Host: localhost",
        b"Host:",
        b"Host: a, b",
        b"Te: trailers",
    ),
    *(
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA",
        b"Connection: upgrade\r\nUpgrade: websocket",
    ),
    *(b"Upgrade: TLS/1.0", b"Connection: close", b"Connection: keep-alive, close, x", b"Connection: content-length"),
    *(
        b"Proxy-Connection: x",
        b"Content-Length: 17",
        b"Content-Length: 3",
        b"Transfer-Encoding: chunked",
        b"Trailer: A",
    ),
    *(
        b"X-Request-Timeout: 0.001",
        b"Transfer-Encoding : chunked",
        b"Content-Length : 3",
        b"A: " + b"b" * 40_000,
        b"a: b\r\n" * 3_000,
    ),
]
CHUNKS = [
    *(
        b"11\r\n%b\r\n0\r\n\r\n",
        b"0x11\r\n%b\r\n0\r\n\r\n",
        b"-1\r\n%b\r\n0\r\n\r\n",
        b"FFFFFFFFFFFFFFFFF\r\n%b",
        b"11\n%b\n0\n\n",
    ),
    *(
        b"11;a=b\r\n%b\r\n0\r\n\r\n",
        b"11;" + b"a" * 50_000 + b"\r\n%b\r\n0\r\n\r\n",
        b"11 \r\n%b\r\n0\r\n\r\n",
        b"12\r\n%b\r\n0\r\n\r\n",
    ),
    *(
        b"11\r\n%b0\r\n\r\n",
        b"11\r\n%b\r\n0\r\nA: b\r\n\r\n",
        b"11\r\n%b\r\n0\r\nContent-Length: 5\r\n\r\n",
        b"11\r\n%b\r\n0\r\n",
    ),
    *(
        b"11\r\n%b\r\n0\r\n" + b"A: b\r\n" * 9_000,
        b"11\r\n%b\r\n000000\r\n\r\n",
        b"1\r\n{\r\n" * 3_000 + b"0\r\n\r\n%b",
        b"\r\n%b",
        b"g\r\n%b",
    ),
]
PRELUDES = [
    b"",
    b"",
    b"",
    b"\r\n",
    b"\r\n" * 5_000,
    b"\n",
    b"\r",
    b"\x00",
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100,
]


def framing(chooser: Random, aim: Aim) -> Attack:
    """Messages that say in several ways where they end, or in none, or never; offers, trailers, folds, line breaks."""
    head = [
        chooser.choice(REQUEST_LINES) if chooser.random() < 0.3 else b"POST /v1/predict HTTP/1.1",
        b"Host: localhost",
    ]
    head += [b"Content-Type: application/json", aim.keys[chooser.choice(["predict", "manage"])]]
    head += chooser.sample(LINES, chooser.choice([0, 1, 1, 2, 4]))
    body = TEXT
    if chooser.random() < 0.5:
        head += [b"Content-Length: " + length for length in chooser.choices(LENGTHS, k=chooser.choice([1, 1, 2]))]
    if chooser.random() < 0.5:
        head += [b"Transfer-Encoding: " + coding for coding in chooser.choices(TRANSFERS, k=chooser.choice([1, 1, 2]))]
        body = chooser.choice(CHUNKS).replace(b"%b", TEXT)
    chooser.shuffle(head[1:])
    end_of_line = chooser.choice([b"\r\n"] * 8 + [b"\n", b"\r"])
    whole = chooser.choice(PRELUDES) + end_of_line.join([*head, b"", body])
    follows = chooser.choice(
        [b"", b"", b"\r\n", b"GET /v1/bank HTTP/1.1\r\nHost: localhost\r\n\r\n", whole, b"\x00" * 100]
    )
    end: End = chooser.choice(["read"] * 5 + ["half", "half", "gone", "gone", "deaf"])  # type: ignore[assignment]
    if end == "deaf":
        follows += b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    why = b" | ".join(line[:40] for line in head[:1] + head[4:]).decode("latin-1")
    return Attack("framing", f"{why!r}, then {end}", in_pieces(chooser, whole + follows), end)


def in_pieces(chooser: Random, whole: bytes) -> tuple[bytes, ...]:
    """Cut at random: whole, in a few pieces, or at its end, which may be missing."""
    if chooser.random() < 0.1:
        whole = whole[: chooser.randrange(len(whole) + 1)]
    cuts = sorted(chooser.randrange(len(whole) + 1) for _ in range(chooser.choice([0, 0, 1, 2, 5])))
    return tuple(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b)


# -- parts of requests ---------------------------------------------------------------------------------


def in_place(chooser: Random, aim: Aim, kind: str, why: str, value: bytes) -> Attack:
    """A sound body with something else in one of its places, or instead of it."""
    method, path, sound = chooser.choice(aim.sound)
    place = chooser.choice([(), *places(sound)])
    body = replaced(sound, place, value)
    why = f"{method} {path}: {'.'.join(map(str, place))} = {why}"
    return Attack(kind, why, (message(method, filled(path), plain(chooser, aim), body),))


def plain(chooser: Random, aim: Aim) -> list[bytes]:
    """A key and a type, as everybody sends them."""
    return [key_of(chooser, aim), b"Content-Type: application/json"]


def key_of(chooser: Random, aim: Aim) -> bytes:
    """Mostly one that is let in."""
    return aim.keys[chooser.choice(["predict", "manage", "manage", "manage", "manage", "none"])] or b"X-None: 1"


ATTACKS: dict[str, Callable[[Random, Aim], Attack]] = {
    "framing": framing,
    "encodings": encodings,
    "nesting": nesting,
    "lengths": lengths,
    "types": types,
    "roles": roles,
}
