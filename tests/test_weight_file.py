"""Files that only pretend to be weights, each refused by its header."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from app.models.safetensors_header import check_weight_file

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def made(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def a(**changes: object) -> dict[str, object]:
    return {"a": {**ONE["a"], **changes}}


HOSTILE = {
    "empty": (b"", "between 2"),
    "a few bytes": (b"abc", "between 2"),
    "a header longer than the file": (made(ONE, length=2**63), "between 2"),
    "a header of 5 MB": (made(b'{"__metadata__": {"a": "' + b"a" * 5_000_000 + b'"}}', b""), "between 2"),
    "no JSON": (made(b"{]"), "Expecting"),
    "no UTF-8": (made(b'{"\xff": 1}'), "decode"),
    "deep JSON": (made(b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    "a list": (made([]), "not a JSON object"),
    "a name twice": (made(json.dumps(ONE).encode()[:-1] + b", " + json.dumps(ONE).encode()[1:]), "twice"),
    "an unknown dtype": (made(a(dtype="F8_E8M0")), "dtype"),
    "a dtype that is a list": (made(a(dtype=["F32"])), "dtype"),
    "a negative dimension": (made(a(shape=[-1])), "whole numbers"),
    "a shape that overflows": (made(a(shape=[2**62, 2**62])), "shape and dtype make"),
    "a bool for a dimension": (made(a(shape=[True])), "whole numbers"),
    "more dimensions than anybody multiplies": (made(a(shape=[2**62] * 100_000)), "100000 dimensions"),
    "offsets the wrong way round": (made(a(data_offsets=[8, 0])), "takes -8 bytes"),
    "a hole": (made(a(data_offsets=[4, 12]), b"\0" * 12), "does not begin"),
    "tensors on each other": (made({**ONE, "b": ONE["a"]}), "does not begin"),
    "data that is cut": (made(ONE, b"\0" * 4), "end at byte"),
    "data behind the end": (made(ONE, b"\0" * 12), "end at byte"),
    "another entry": (made(a(code="import os")), "nothing else"),
    "many tensors": (
        made({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(5_001)}, b""),
        "5001 tensors",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, name: str) -> None:
    content, says = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        check_weight_file(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="regular file"):
        check_weight_file(tmp_path / "model.safetensors")


def test_what_the_library_writes_is_accepted(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(3, 4, dtype=dtype) for name, dtype in (("a", torch.float32), ("b", torch.int64))}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    check_weight_file(tmp_path / "model.safetensors")


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1) | st.none())
def test_no_bytes_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, length: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(made(text, b"", length))
    with pytest.raises(ValueError):
        check_weight_file(path)
