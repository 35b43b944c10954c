"""What reads untrusted bytes, fed by atheris: inputs that change until they reach every branch. `make fuzz` runs it.

Each target names the errors that it may raise; any other one ends the run, and the input that caused it is kept. A
target takes `SECONDS` unless another time is given: `python -m tests.fuzz recipes 600`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import atheris

with atheris.instrument_imports(include=["app", "json"]):
    import json.decoder  # noqa: F401
    import json.scanner

    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    from app.api.bounded_json import parse_json
    from app.api.http_server.header_text import header_text
    from app.api.predict_routes import PredictRequest
    from app.api.problems import reply_to
    from app.api.sweep_routes import SweepRequest
    from app.errors import BadHeader, TweenError
    from app.experiments.experiment import Experiment
    from app.models.safetensors_header import check_weight_file
    from app.models.tokenizer import TextTokenizer
    from app.names import is_name, nfc
    from app.weights.auto_recipe import automatic
    from app.weights.recipe import RESERVED, Cookbook

from starlette.requests import Request

from tests.pico import CONFIGS, tokenizer

SECONDS = 60
SLOW = 1.0
"""Seconds of processor time that no input may take."""
FOLDER = Path(tempfile.mkdtemp(prefix="tween-fuzz-"))
COOKBOOK = Cookbook(["finance", "airline"])
TOKENIZER = tokenizer()
REQUEST = Request({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "scheme": "http"})


def recipes(data: bytes) -> None:
    """A recipe's text, and the JSON of one: what is read reads back as itself, and what is automatic too."""
    text = data.decode(errors="surrogateescape")
    auto = automatic(text)
    assert auto is None or automatic(auto.text) == auto, auto
    for recipe in (text, _json(data)):
        try:
            read = COOKBOOK.read(recipe)
        except TweenError as error:
            assert len(str(error)) < 700 and "\n" not in str(error), error
            continue
        assert COOKBOOK.read(read.text) == read, read
        assert abs(sum(_first(share) for share in read.weights.values()) - 1) < 1e-9


def headers(data: bytes) -> None:
    """The head of a safetensors file: refused, or such that the library takes it."""
    path = FOLDER / "model.safetensors"
    for content in (data, len(data).to_bytes(8, "little") + data + b"\0" * 16):
        path.write_bytes(content)
        try:
            check_weight_file(path)
        except ValueError as error:
            assert len(str(error)) < 700, error


def names(data: bytes) -> None:
    """Names and headers in any script: what is a name is read back as itself, in every place that takes one."""
    with contextlib.suppress(BadHeader):
        text = header_text("X-Tween-Unit", data.decode("latin-1"))
        assert header_text("X-Tween-Unit", quote(text, safe="")) == text
    name = nfc(data.decode(errors="replace"))
    automatic(f"{name}@auto")
    if is_name(name) and name not in RESERVED:
        assert nfc(name) == name
        for recipe in ({"variant": name}, f"{name}@1"):
            assert Cookbook([name]).read(recipe).t == ((name, 1_000_000),)


def bodies(data: bytes) -> None:
    """JSON bodies, and the refusal that becomes of one."""
    for model in (PredictRequest, SweepRequest, Experiment):
        try:
            parse_json(data, model).model_dump_json()
        except (RequestValidationError, HTTPException) as error:
            reply = reply_to(REQUEST, error)
            assert reply is not None and reply.status_code in (400, 413, 422), error
            detail = json.loads(reply.body)["detail"]
            assert detail and len(detail) < 700, detail


def pairs(data: bytes) -> None:
    """Texts and pairs: cut as transformers cuts them, whatever is in them."""
    parts = data.decode(errors="ignore").split("\0")[:2]
    for side in ("left", "right"):
        TOKENIZER.truncation_side = side
        (row,) = TextTokenizer(TOKENIZER, CONFIGS["bert"], 16).encode(
            [parts[0] if len(parts) == 1 else (parts[0], parts[1])]
        )
        expected = TOKENIZER(*parts, truncation=True, max_length=16)
        assert (row.ids, row.types) == (expected["input_ids"], expected["token_type_ids"])


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "recipes": (
        recipes,
        [
            b"base",
            b"finance@0.3+airline@0.2;temperature=1.3",
            b"linear:airline..finance@0.1:0.9",
            b'{"method": "linear", "from": "airline", "t": {"finance": [0.1, 0.9]}, "temperature": 1.3}',
            b'{"variant": "finance", "t": 4e-1}',
            b"finance @ auto :",
            b"x@auto" + b" " * 2_000 + b"!",
            b"finance@" + b"1" * 1_980 + b"x",
        ],
    ),
    "names": (names, ["财务".encode(), "u\u0308".encode(), b"%E5%AE%A2-1", b"50%25", b"a_b-1"]),
    "headers": (
        headers,
        [
            b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}',
            b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}',
        ],
    ),
    "pairs": (pairs, [b"late order", b"the refund came\0late, late and late again, and <sep> broken, thanks! 42"]),
    "bodies": (
        bodies,
        [
            b'{"texts": ["a", ["b", "c"]], "recipe": {"t": {"finance": 0.4}}, "top_k": 1, "unit": [null, "u"]}',
            b'{"texts": [1, [2, 3, 4], null], "recipe": [{}, 1], "segment": [1], "unit": [[]], "attributes": {"a": 1}}',
            b"[" * 40 + b"]" * 40,
            b'{"data": [{"text": "a", "label": 0}], "lambda": "folds", "grid": [0, 1], "cost": [[0, 1]]}',
            b'{"arms": [{"name": "a", "recipe": "base", "share": 1}], "control": "a", "start": "2026-01-31", '
            b'"overrides": {"u": "a"}, "targeting": {"c": ["\\ud83d\\ude00"]}}',
        ],
    ),
}


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _first(share: float | tuple[float, float]) -> float:
    return share[0] if isinstance(share, tuple) else share


def _timely(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def timed(data: bytes) -> None:
        began = time.process_time()
        target(data)
        taken = time.process_time() - began
        assert taken < SLOW, f"{taken:.1f} s"

    return timed


def _run(name: str, seconds: int) -> None:
    """One target, in this process, which atheris ends."""
    target, seeds = TARGETS[name]
    corpus = FOLDER / name
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-max_len=65536", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix=fuzz-{name}-", str(corpus)], _timely(target))
    atheris.Fuzz()


def main() -> None:
    if len(sys.argv) == 3:
        _run(sys.argv[1], int(sys.argv[2]))
        return
    for name in TARGETS:
        print(f"{name}: {SECONDS} s", flush=True)
        subprocess.run([sys.executable, "-m", "tests.fuzz", name, str(SECONDS)], check=True)


if __name__ == "__main__":
    main()
