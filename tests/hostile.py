"""Requests that nobody who means well sends, for every operation that a specification names."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

CANARY = "canary-7f3a"
"""In texts, units and rows, and behind the sixtieth character of names: no refusal may show it."""
LONG = "n" * 200 + CANARY
DEEP = 100_000

VALUES = [
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1.5",
    b"1e308",
    b"1e999",
    b"-Infinity",
    b"NaN",
    b"9" * 4_000,
    b"9" * 5_000,
    b"18446744073709551616",
    b'""',
    b'" "',
    json.dumps(LONG).encode(),
    b'"\\ud800"',
    b'"\\u0000"',
    b'"a\\u0000b\\ud83d"',
    '"٣@٠.٤"'.encode(),
    b'"angry@1e999999999"',
    b'"angry@0.1:0.9:0.2;temperature=1e-999999999"',
    b'"exp:\\u0000"',
    b'"@\\ud800"',
    b'"0001-01-01T00:00:00+23:59"',
    b'"9999-12-31T23:59:59-23:59"',
    b"[]",
    b"[null]",
    b"[[[]]]",
    b'["\\udfff", ["a", "b", "c"]]',
    b"{}",
    b'{"\\ud800": "\\ud800"}',
    b'{"\\u0000": [1]}',
    b'{"": {"": {}}}',
    json.dumps({LONG: LONG}).encode(),
    b'{"t": {"angry": NaN}}',
    b'{"t": {"angry": ' + b"9" * 4_000 + b"}}",
    b'{"variant": "angry", "t": [0, 1e400]}',
    b'{"a": 1, "a": 2}',
    b"[" * 500 + b"]" * 500,
    b"[" * 26 + b"]" * 26,
    b"[" * 972 + b"]" * 972,
    b'"x@auto' + b" " * 30_000 + b'!"',
    b'"' + b" " * 30_000 + b'base"',
    b'"angry@' + b"1" * 1_990 + b'x"',
    b"[" + b"[]," * 5_000 + b"1]",
    b"[" + b"1," * 11_000 + b"1]",
    b"[" + b'{"x": null},' * 5_000 + b"1]",
    json.dumps(dict.fromkeys(map(str, range(2_500)))).encode(),
]
BODIES = [
    *VALUES,
    b"",
    b"{",
    b'{"texts": "a",}',
    b"\x00",
    b"\xff\xfe\x00",
    "{}".encode("utf-16"),
    "{}".encode("utf-8-sig"),
    b'"\xed\xa0\x80"',
    b"[" * DEEP,
    b'{"a":' * DEEP,
    *(b'{"recipe": ' + b"[" * levels + b"]" * levels + b"}" for levels in (40, 970, 975, 980)),
    b"[" + b"[]," * 250_000 + b"[]]",
    b"[" * DEEP + b"]" * DEEP,
    b"'" + CANARY.encode() + b"'",
    b"texts=" + CANARY.encode(),
]
CONTENT_TYPES = [
    None,
    "",
    "text/plain",
    "text/csv",
    "text/csv; charset=utf-16",
    "application/json; charset=utf-16",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "application/",
    ";",
    "application/\x80json",
]
WORDS = [
    "",
    " ",
    "-1",
    "٣",
    "²",
    "9" * 5_000,
    "1e999",
    "nan",
    "inf",
    LONG,
    "\x00",
    "a\x00b",
    "\ud800",
    "..",
    "%",
    ":mark",
]
QUERIES = [
    b"&&&",
    b"=",
    b"?",
    b"%",
    b"%ff%fe",
    b"%00",
    b"version=1&version=2",
    b"version[]=1",
    b"a=" + b"b" * 20_000,
    b"columns=x&text=y",
    b"data=x&data=y&cost=1&grid=,&variants=,",
    b"lambda=nan&seed=-1&folds=1e9",
]
HEADERS = ["", "nan", "-1", "1e999", "\xb2", "\xff" * 300, "x" * 5_000, CANARY * 50]
PATH_EXTRAS = [quote(c, safe="") for c in ("/", "..", "\\", "\x00", "é", "😀", "%2f", ":mark")] + [
    "%ff",
    "%ed%a0%80",
    "%",
]

ARMS = [{"name": "mild", "recipe": "base", "share": 0.5}, {"name": "firm", "recipe": "angry@0.4", "share": 0.5}]
ROWS = [{"text": CANARY, "label": "positive", "group": 1, "segment": "mail", "time": 1}, {"text": "b", "label": 0}]
SETTING = {"t": 0.4, "temperature": 1.3, "interval": [0.3, 0.5], "texts": 200}
SOUND: dict[str, list[Any]] = {
    "POST /v1/predict": [
        {
            "texts": [CANARY, [CANARY, "a pair"]],
            "recipe": ["base", {"variant": "angry", "t": 0.4}],
            "segment": ["mail", None],
            "top_k": 1,
            "function": "softmax",
            "cache": False,
            "unit": [CANARY, None],
            "attributes": {"country": "nz"},
        }
    ],
    "POST /v1/spectrum": [
        {"texts": CANARY, "variant": "angry", "steps": 3, "function": "none", "check": True},
        {"texts": [CANARY, [CANARY, "a pair"]], "recipe": "angry..polite", "ts": [0, 1]},
    ],
    "POST /v1/blends": [{"recipe": {"method": "linear", "t": {"angry": 0.25}, "temperature": 1}}],
    "PUT /v1/aliases/{name}": [{"recipe": "polite@0.5"}, {"recipe": {"variant": "angry", "t": [0, 1]}, "version": 1}],
    "PUT /v1/segments/{variant}": [
        {
            "format": "tween segments 1",
            "variant": "angry",
            "bank": "f" * 64,
            "pooled": SETTING,
            "segments": {"mail": SETTING},
            "entropy": None,
            "router": {
                "segments": ["mail"],
                "buckets": 8192,
                "bias": [0.0],
                "weights": base64.b64encode(bytes(16384)).decode(),
            },
        }
    ],
    "POST /v1/sweeps": [
        {
            "data": ROWS,
            "variant": "angry",
            "objective": "loss",
            "rule": "best",
            "lambda": 0,
            "grid": [0, 1],
            "ramp": False,
            "folds": 2,
            "robustness": False,
            "seed": 0,
            "columns": {"text": "text"},
        },
        {
            "datasets": [
                {
                    "name": "one",
                    "data": ROWS,
                    "role": "target",
                    "weight": 1,
                    "margin": 0,
                    "metric": "loss",
                    "confidence": 0.9,
                }
            ],
            "variants": ["angry", "polite"],
            "cost": [[0, 1, 1], [1, 0, 1], [1, 1, 0]],
        },
        {"data": "text,label\na,positive\nb,negative\n", "line": "angry..polite"},
    ],
    "PUT /v1/experiments/{name}": [
        {
            "arms": ARMS,
            "control": "mild",
            "metrics": [{"name": "bought", "kind": "count", "role": "primary", "margin": 0, "cap": 3}],
            "salt": "salt",
            "coverage": 1,
            "layer": {"name": "all", "low": 0, "high": 1},
            "holdout": 0,
            "targeting": {"country": ["nz"]},
            "overrides": {CANARY: "mild"},
            "start": 0,
            "stop": 1e10,
            "planned_units": 100,
            "window": 60,
            "mode": "test",
            "status": "draft",
        }
    ],
    "POST /v1/experiments/{name}/status": [{"status": "running"}, {"status": "paused", "version": 2}],
    "POST /v1/experiments/{name}/promote": [
        {"arm": "firm", "alias": "prod"},
        {
            "arm": "firm",
            "alias": "prod",
            "guarded": True,
            "steps": [0.5, 1],
            "step_seconds": 60,
            "step_units": 100,
            "force": True,
        },
    ],
    "POST /v1/experiments/{name}/outcomes": [
        [{"unit": CANARY, "metric": "bought", "value": 1, "id": CANARY, "at": 1}],
    ],
}
"""Bodies for every operation that takes one, with every field that it may have."""


@dataclass(frozen=True)
class Hostile:
    """One request; `why` tells what is wrong with it."""

    why: str
    method: str
    target: str
    body: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def requests(specification: dict[str, Any]) -> Iterator[Hostile]:
    """For every operation: bodies, fields, content types, paths, queries and headers."""
    for path, operations in specification["paths"].items():
        for method, operation in operations.items():
            yield from _of(method.upper(), path, operation)


def _of(method: str, path: str, operation: dict[str, Any]) -> Iterator[Hostile]:
    known = filled(path)
    for why, body in _bodies(f"{method} {path}", operation):
        yield Hostile(why, method, known, body, [_header("content-type", "application/json")])
    for kind in CONTENT_TYPES:
        headers = [] if kind is None else [_header("content-type", kind)]
        yield Hostile(f"content type {kind!r}", method, known, CANARY.encode(), headers)
    if path != known:
        for word in [*(quote(word, safe="", errors="surrogatepass") for word in WORDS), *PATH_EXTRAS]:
            yield Hostile(f"path {word[:40]}", method, path.replace(path[path.index("{") : path.index("}") + 1], word))
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "query":
            for word in WORDS:
                query = f"{parameter['name']}={quote(word, safe='', errors='surrogatepass')}"
                yield Hostile(f"query {query[:40]}", method, f"{known}?{query}")
    kind = "text/csv" if path == "/v1/sweeps" else "application/json"
    for raw in QUERIES:
        content = b"text,label\na,b\n" if kind == "text/csv" else b"{}"
        yield Hostile(
            f"query {raw[:40]!r}", method, f"{known}?{raw.decode()}", content, [_header("content-type", kind)]
        )
    names = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "header"]
    for name in (*names, "X-Request-Timeout", "X-Request-Id", "Accept", "Authorization", "traceparent"):
        for value in HEADERS:
            yield Hostile(f"header {name}: {value[:40]!r}", method, known, b"", [_header(name, value)])


def filled(path: str) -> str:
    """A pattern as a path to something that is there, or might be."""
    known = path.replace("{name}", "tone").replace("{variant}", "angry").replace("{key}", "0" * 32)
    return (
        known.replace("{sweep}", "none-such")
        .replace("{unit}", "customer-1")
        .replace("{unit:path}", "customer-1")
        .replace("{path}", "none")
    )


def spellings(path: str) -> Iterator[str]:
    """A path as a caller may write it who hopes that the door reads it otherwise than the router."""
    for ending in ("%0A", "%0a%0a", "%0D", "%0D%0A", "%00", "%09", "%20", "%E2%80%A8", "%C2%85", "%7F", "%1b%5b2K"):
        yield path + ending
    yield from (path + ending for ending in ("/", "//", "/.", "/..", ";x", ";/", "?", "?x=/livez", "%3Fx", "%23", "#"))
    head, _, tail = path.rpartition("/")
    yield from (
        f"{head}{middle}{tail}" for middle in ("//", "/./", "/%2e/", "/x/../", "%2F", "%2f", "%5C", "/%0A", ";/")
    )
    yield from (f"{start}{path}" for start in ("/", "/.", "/livez/..", "/docs/..", "/%0A", "/static-offline-docs/.."))
    yield path.upper()
    yield path.title()
    yield "".join(f"%{ord(c):02x}" if c.isalpha() else c for c in path)
    yield path.replace("v1", "v%31")
    yield path.replace("/", "%2F")


def _bodies(operation: str, described: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for body in BODIES:
        yield f"body {body[:40]!r}", body
    if "requestBody" not in described:
        return
    for sound in SOUND[operation]:
        yield from _variations(sound)


def _variations(sound: Any) -> Iterator[tuple[str, bytes]]:
    """A sound body; with each of its values replaced; with fields that do not exist."""
    yield "the sound body", _dumped(sound)
    for place in places(sound):
        for value in VALUES:
            yield f"{place} = {value[:40]!r}", replaced(sound, place, value)
    inside = sound[0] if isinstance(sound, list) else sound
    for name in (b'""', json.dumps(LONG).encode(), b'"\\ud800"', b'"\\u0000"', b'"__class__"', b'"model_config"'):
        extra = b"{" + name + b": 1, " + json.dumps(inside).encode()[1:]
        yield f"field {name[:40]!r}", b"[" + extra + b"]" if isinstance(sound, list) else extra


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a body has values: every field, and the fields of what lies in fields; of lists the first alone."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, part in value.items():
            yield from places(part, (*place, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def replaced(value: Any, place: tuple[str | int, ...], put: bytes) -> bytes:
    """JSON with one place of it replaced, by something that need not be JSON."""
    if not place:
        return put
    if isinstance(value, dict):
        parts = [
            (name, replaced(part, place[1:], put) if name == place[0] else _dumped(part))
            for name, part in value.items()
        ]
        return b"{" + b", ".join(_dumped(name) + b": " + part for name, part in parts) + b"}"
    parts_of = [replaced(part, place[1:], put) if i == place[0] else _dumped(part) for i, part in enumerate(value)]
    return b"[" + b", ".join(parts_of) + b"]"


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode("latin-1")
