"""What is doubtful about a variant that may be served all the same: sentences for whoever runs the bank.

What cannot be blended is refused when the bank is loaded (`bank.py`). What is here loads, blends and gives numbers, and
may still be a mistake: a variant of another base, one that is loaded twice, rounded weights, labels that only their
numbers hold together. The thresholds are guesses between what was measured: fine-tunes of a base differ from it by
about a hundredth of its length, models that share no ancestor by 1.4 times.

A barrier between base and variant takes labelled texts to find; `tween barrier --record` keeps the finding beside the
variant, with a digest of both members' weights, and it is told here as long as these are the weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from app.errors import BadBank
from app.weights import geometry
from app.weights.arena import BASE, Arena

LONG = 0.3
"""A delta longer than this, as a share of the base's length, is no usual fine-tune."""
TWINS = 1.0
"""Degrees between deltas below which they are hardly two."""
PLACEHOLDER = re.compile(r"LABEL_\d+")
HALF = {"BF16": "bfloat16", "F16": "float16"}
RECORD = "tween-barrier.json"
UNBOUNDED = 10**12
"""Tokens: a tokenizer that knows no limit says more."""


@dataclass(frozen=True)
class Files:
    """What a member's files say besides the weights: tensors of integers by name, and which half precision (or "")."""

    integers: dict[str, Tensor] = field(default_factory=dict)
    half: str = ""


@dataclass(frozen=True)
class Recorded:
    """What `tween barrier` found between the base and a variant whose weights have this digest."""

    digest: str
    connected: bool
    sentence: str


def look_at(folder: Path) -> Files:
    """Read what is not a float32 weight from a folder's safetensors files."""
    integers: dict[str, Tensor] = {}
    kinds: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dict
                kind = file.get_slice(name).get_dtype()
                kinds.add(kind)
                if kind[0] in "IUB" and kind not in HALF:
                    integers[name] = file.get_tensor(name)
    return Files(integers, next((HALF[kind] for kind in sorted(kinds) if kind in HALF), ""))


def doubts_about_files(base: Files, variant: Files) -> list[str]:
    """Integers that differ from the base's, and rounded weights."""
    found = [
        f"its {name} differs from the base's, which is used"
        for name, values in variant.integers.items()
        if name in base.integers and not _same(values, base.integers[name])
    ]
    if variant.half:
        found.append(f"its weights were saved as {variant.half}: what that rounded away is part of its delta")
    return found


def doubts_about_labels(
    ours: Sequence[str] | None, theirs: Sequence[str] | None, foreign: str | None = None
) -> list[str]:
    """Labels of base and variant that have no names of their own; `foreign` is the class that a variant was saved from
    that is no sequence classifier."""
    if theirs is None and foreign is not None and "For" in foreign:
        return [foreign_head(foreign)]
    if theirs is None:
        return ["it has no classification head: the mean of the other members' is used"]
    if ours is not None and all(PLACEHOLDER.fullmatch(label) for label in theirs):
        return [f"its labels are only numbered ({theirs[0]}, ...): that they mean what the base's mean is not known"]
    return []


def doubts_about_tokenizers(base: PreTrainedTokenizerFast, variant: PreTrainedTokenizerFast | None) -> list[str]:
    """What a variant's tokenizer says of long texts and of pairs, where that is not what the base's says."""
    if variant is None:
        return ["it brings no tokenizer: the base's is used"]
    found = []
    if variant.model_max_length != base.model_max_length:
        ours, theirs = (
            f"{most} tokens" if most < UNBOUNDED else "any number of tokens"
            for most in (base.model_max_length, variant.model_max_length)
        )
        found.append(f"its tokenizer reads {theirs} of a text, the base's reads {ours}, which is what counts")
    if ("token_type_ids" in variant.model_input_names) != ("token_type_ids" in base.model_input_names):
        found.append("its tokenizer and the base's differ in whether a pair's texts have types: the base's are used")
    return found


def foreign_head(name: str) -> str:
    """What is said of a member that was saved as a class that is no sequence classifier."""
    return f"it was saved as {name}, whose head means something else: the mean of the other members' heads is used"


def doubts_about_weights(arena: Arena, products: Tensor) -> dict[str, list[str]]:
    """By variant, what the sizes and angles of the deltas give reason to doubt; `products` are theirs (V, V)."""
    squared, along = geometry.against_base(arena.rows)
    length = squared**0.5
    norms, angles = geometry.norms(products).tolist(), geometry.angles(products).tolist()
    found: dict[str, list[str]] = {name: [] for name in arena.variants}
    for i, name in enumerate(arena.variants):
        if norms[i] == 0:
            found[name].append("its weights are the base's: every t gives the same")
            continue
        if norms[i] > LONG * length:
            own = (squared + 2 * float(along[i]) + norms[i] ** 2) ** 0.5
            cosine = (squared + float(along[i])) / (length * own)
            degrees = torch.rad2deg(torch.tensor(cosine).clamp(-1, 1).arccos())
            found[name].append(
                f"its delta is {norms[i] / length:.2f} times as long as the base, and its weights lie {degrees:.0f} "
                "degrees from it: is this the base that it was fine-tuned from?"
            )
        for j, other in enumerate(arena.variants[:i]):
            if norms[j] and angles[i][j] < TWINS:
                found[name].append(f"its delta points where that of {other} points: is it the same variant twice?")
    return found


def _same(values: Tensor, others: Tensor) -> bool:
    return values.dtype == others.dtype and torch.equal(values, others)


def digest_of(arena: Arena, variant: str) -> str:
    """A hash of the weights of base and variant, in hex."""
    digest = hashlib.sha256()
    for name in (BASE, variant):
        digest.update(arena[name].cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def record_barrier(folder: Path, recorded: Recorded) -> Path:
    """Keep a finding beside a variant; raises `BadBank` where that cannot be written."""
    path = folder / RECORD
    try:
        path.write_text(json.dumps(asdict(recorded), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadBank(f"{path} cannot be written: {error.strerror}") from error
    return path


def doubts_about_path(folder: Path, arena: Arena, variant: str) -> list[str]:
    """What was recorded of the line from the base to a variant."""
    path = folder / RECORD
    if not path.is_file():
        return []
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        recorded = Recorded(str(read["digest"]), bool(read["connected"]), str(read["sentence"]))
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{RECORD} beside it cannot be read; have `tween barrier --record` write it anew"]
    if recorded.digest != digest_of(arena, variant):
        return [f"{RECORD} beside it is about other weights; have `tween barrier --record` write it anew"]
    return [] if recorded.connected else [recorded.sentence]


def with_any(found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Those variants that there is something to say about."""
    return {name: list(sentences) for name, sentences in found.items() if sentences}
