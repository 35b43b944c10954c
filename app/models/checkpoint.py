"""A Hugging Face folder, found, read and written: safetensors only, no code from it, nothing random in it.

Every refusal names the member, the place and the first thing that is wrong. The weights are copied out of
the files, because a mapped file that somebody truncates later would kill the process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.configuration_utils import PreTrainedConfig

from app.errors import BadBank
from app.models.configuration import first_line, foreign_architecture, label_names, read_config
from app.models.network import attention_of, output_layer
from app.models.safetensors_header import check_weight_file
from app.weights.layout import Layout

log = logging.getLogger(__name__)

HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Source:
    """Where a member comes from: a folder, or a hub name with an optional revision."""

    place: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """`FOLDER`, `org/name` or `org/name@revision`."""
        if Path(text).expanduser().exists():
            return cls(text)
        place, _, revision = text.partition("@")
        return cls(place, revision or None)

    def __str__(self) -> str:
        return f"{self.place}@{self.revision}" if self.revision else self.place

    @property
    def shown(self) -> str:
        """For replies: the hub name, or the folder's own name without the path that leads to it."""
        path = Path(self.place).expanduser()
        return path.name if path.is_dir() else str(self)

    def check(self, member: str, allowed: Sequence[str]) -> None:
        """Raises `BadBank` for a place that is not in the list: folders with all that lies below them, hub names, and
        `org/*` for all of an organisation. Links are followed before they are compared."""
        path = Path(self.place).expanduser()
        for entry in allowed:
            inside = path.exists() and path.resolve().is_relative_to(Path(entry).expanduser().resolve())
            if inside or (not path.exists() and fnmatchcase(self.place, entry)):
                return
        raise BadBank(f"{member}: {self} is not among the places that TWEEN_MODEL_SOURCES allows")

    def folder(self, member: str) -> Path:
        """The folder on this machine; a hub name is downloaded first."""
        path = Path(self.place).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise BadBank(f"{member}: {path} is a file; give the folder that holds config.json")
        if path.is_absolute() or self.place.startswith((".", "~")) or self.place.count("/") > 1:
            raise BadBank(f"{member}: there is no folder {path}")
        try:
            return Path(snapshot_download(self.place, revision=self.revision, allow_patterns=HUB_FILES))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadBank(
                f"{member}: there is no folder {self.place}, and the hub does not give it either: {reason}"
            ) from error


@dataclass
class Checkpoint:
    """One member, read: the model that transformers made of it, and which of its parameters are real."""

    member: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast | None
    missing: frozenset[str]
    has_head: bool

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters that the files hold, by name."""
        return {name: p.detach() for name, p in self.model.named_parameters() if name not in self.missing}

    @property
    def labels(self) -> list[str] | None:
        """Label names in the order of the logits; None without a head of its own."""
        return label_names(self.model.config) if self.has_head else None

    @property
    def foreign(self) -> str | None:
        """The class that it was saved from, where that is no sequence classifier."""
        return foreign_architecture(self.model.config)


def read_head(member: str, folder: Path) -> list[str] | None:
    """The labels of the member's own classification head, in its order; None if it has none of ours.

    It has one if config.json says that a sequence classifier was saved, and if it says nothing, if the weights hold the
    layer that gives the logits. The head of another class is none, even where its parameters are called like ours.
    """
    config = read_config(member, folder)
    if foreign_architecture(config) is not None:
        return None
    if not config.architectures:
        _check_files(member, folder)
        model, report = _load(member, folder, config)
        if set(_logits_of(model)) <= report["missing_keys"]:
            return None
    return label_names(config)


def read_checkpoint(member: str, folder: Path, labels: list[str], has_head: bool) -> Checkpoint:
    """Read the weights of a member; `labels` are those that its head gives (in its own order) or, where it has none,
    is to have.

    Raises `BadBank` for pickles, broken or incomplete files, and numbers that are not finite.
    """
    _check_files(member, folder)
    config = read_config(member, folder)
    if not has_head:
        # Without this, transformers would give it a head of two labels named LABEL_0 and LABEL_1.
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    model, report = _load(member, folder, config)
    missing = _missing(member, model, report, has_head)
    checkpoint = Checkpoint(member, folder, model.eval(), read_tokenizer(member, folder, config), missing, has_head)
    for name, tensor in checkpoint.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadBank(f"{member}: {name} holds a number that is not finite")
    return checkpoint


def _load(member: str, folder: Path, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model that transformers makes of a folder's weights, and its report of what did not fit."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation=attention_of(config),
            ignore_mismatched_sizes=True,  # the report tells which, and _missing refuses
            output_loading_info=True,
        )
    except Exception as error:  # values of config.json that make no model fail in many ways
        raise BadBank(f"{member}: {folder} cannot be loaded: {first_line(error)}") from error
    return model, report


def read_tokenizer(member: str, folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerFast | None:
    """The folder's tokenizer; None if it holds none (a variant may leave it to the base). Without `config`, that of the
    folder is read."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BadBank(f"{member}: the tokenizer in {folder} cannot be read: {first_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BadBank(f"{member}: the tokenizer in {folder} has no tokenizer.json; save it with a fast tokenizer")
    return tokenizer


def safetensors_stream(
    layout: Layout, dtype: torch.dtype, metadata: Mapping[str, str], divisors: Mapping[str, float]
) -> tuple[int, Callable[[Tensor], Iterator[bytes]]]:
    """A flat vector (P,) as a safetensors file: its length in bytes, and what makes the file piece by piece.

    Format: 8 bytes of header length, little-endian, a JSON header, then the tensors without gaps
    (https://github.com/huggingface/safetensors#format). Saved as model.safetensors beside the base's
    config.json, `from_pretrained` loads it. Tensors that `divisors` names are divided.
    """
    kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for place in layout.places:
        start, end = end, end + prod(place.shape) * dtype.itemsize
        header[place.name] = {"dtype": kind, "shape": place.shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    def pieces(vector: Tensor) -> Iterator[bytes]:
        yield len(encoded).to_bytes(8, "little") + encoded
        for place in layout.places:
            tensor = layout.view(vector, place.name).cpu().contiguous()
            if place.name in divisors:
                tensor = tensor / divisors[place.name]
            yield tensor.view(-1).view(torch.uint8).numpy().tobytes()

    return 8 + len(encoded) + end, pieces


def _check_files(member: str, folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise BadBank(f"{member}: {folder} is an adapter; merge it into its base and save the whole model")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise BadBank(
                f"{member}: {folder} holds its weights in {pickles[0]}, a pickle, which is never loaded; "
                "save them as model.safetensors"
            )
        raise BadBank(f"{member}: {folder} holds no .safetensors file")
    _check_index(member, folder)
    for path in files:
        if not path.is_file():
            raise BadBank(f"{member}: {path} is not a regular file")
        try:
            check_weight_file(path)
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, ValueError, OSError) as error:
            raise BadBank(f"{member}: {path} is not a sound safetensors file: {first_line(error)}") from error


def _check_index(member: str, folder: Path) -> None:
    """An index that names files elsewhere would have them loaded without having been looked at."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        strangers = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadBank(f"{member}: {path} cannot be read: {first_line(error)}") from error
    if strangers:
        raise BadBank(f"{member}: {path} names {strangers[0]!r}, which is no safetensors file in this folder")


def _missing(member: str, model: PreTrainedModel, report: dict[str, Any], has_head: bool) -> frozenset[str]:
    """Parameters that this member does not have: those of a head that is not its own. Raises `BadBank` for what
    transformers would only report: other missing weights become random numbers."""
    encoder = model.base_model_prefix + "."
    head = frozenset() if has_head else frozenset(n for n, _ in model.named_parameters() if not n.startswith(encoder))
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]} - head
    if mismatched:
        raise BadBank(f"{member}: {min(mismatched)} has another shape than config.json says")
    missing = frozenset(report["missing_keys"]) | head
    lost = {name for name in missing - head if has_head or ".pooler." not in name}
    if lost:
        raise BadBank(f"{member}: the weights lack {min(lost)}, which config.json promises")
    surplus = sorted(
        name for name in report["unexpected_keys"] if name.startswith(encoder) and "position_ids" not in name
    )
    if surplus:
        raise BadBank(f"{member}: the weights hold {surplus[0]}, which config.json does not know")
    return missing


def _logits_of(model: PreTrainedModel) -> list[str]:
    """The parameters of the layer that gives the logits."""
    layer = output_layer(model, len(label_names(model.config)))
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[0] == layer]
