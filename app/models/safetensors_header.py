"""The head of a safetensors file, read before anybody else reads the file.

The library refuses most broken files, but takes a name that stands there twice, a header of 67 MB with a million empty
tensors (8 s and 2 GB), and metadata of any size. This looks at the first few bytes only, bounded, and holds the file to
what the format says (https://github.com/huggingface/safetensors#format): tensors that lie one behind the other and fill
the file.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

HEADER_BYTES = 4 * 1024 * 1024
TENSORS = 5_000
DIMENSIONS = 16
"""Of one tensor. The product of the 180,000 that a header has room for takes minutes."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element, by the dtypes that a classifier may have."""


def check_weight_file(path: Path) -> None:
    """Raises `ValueError` with what is wrong, `OSError` if the file cannot be read."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _header(file, size)
        start = file.tell()
    spans = sorted(_span(name, entry) for name, entry in header.items() if name != "__metadata__")
    if len(spans) > TENSORS:
        raise ValueError(f"it holds {len(spans)} tensors; at most {TENSORS} are read")
    end = 0
    for first, last, name in spans:
        if first != end:
            raise ValueError(f"{name[:80]!r} does not begin where the tensor before it ends")
        end = last
    if start + end != size:
        raise ValueError(f"its tensors end at byte {start + end}, the file at {size}")


def _header(file: BinaryIO, size: int) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(HEADER_BYTES, size - 8):
        raise ValueError(f"its header would have {length} bytes; between 2 and {HEADER_BYTES} are read")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands in its header twice")
    return made


def _span(name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor begins and ends, after the header."""
    shown = repr(name[:80])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if str(dtype) not in SIZES:
        raise ValueError(f"{shown} has the dtype {str(dtype)[:20]!r}; read are {', '.join(SIZES)}")
    if isinstance(shape, list) and len(shape) > DIMENSIONS:
        raise ValueError(f"{shown} has {len(shape)} dimensions; at most {DIMENSIONS} are read")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown} has a shape or offsets that are not whole numbers from 0 up")
    first, last = offsets
    if last - first != prod(shape) * SIZES[dtype]:
        raise ValueError(f"{shown} takes {last - first} bytes, where shape and dtype make {prod(shape) * SIZES[dtype]}")
    return first, last, name


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
