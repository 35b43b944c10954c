"""Base and variants by name, in one arena, with a fingerprint of their content.

Loading is where blending goes right or silently wrong: other labels, another tokenizer or another
architecture under the same tensor names still give numbers. So everything is compared here, once, and the
first difference is named in the refusal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.configuration_utils import PreTrainedConfig

from app.errors import BadBank
from app.models import variant_checks
from app.models.architectures import architecture_of
from app.models.checkpoint import Checkpoint, Source, read_checkpoint, read_head
from app.models.configuration import problem_type, read_config
from app.models.network import Network, output_layer
from app.models.tokenizer import check_token_ids
from app.names import MAX_NAME, is_name, nfc
from app.weights import geometry
from app.weights.arena import BASE, Arena
from app.weights.layout import Layout
from app.weights.recipe import RESERVED

log = logging.getLogger(__name__)
T = TypeVar("T")

VOLATILE_CONFIG = frozenset(
    "_name_or_path architectures dtype torch_dtype transformers_version use_cache id2label label2id finetuning_task"
    " gradient_checkpointing num_labels problem_type initializer_range initializer_factor initializer_cutoff_factor"
    " output_attentions output_hidden_states return_dict chunk_size_feed_forward name_or_path".split()
)
"""Fields that may differ between members without changing what the weights mean. Dropout is another."""


@dataclass(frozen=True)
class BankSpec:
    """Which members make up a bank, and the files of t's by segment, by variant or `auto`."""

    base: Source
    variants: dict[str, Source] = field(default_factory=dict)
    segments: dict[str, Path] = field(default_factory=dict)

    def check_sources(self, allowed: Sequence[str]) -> None:
        """Raises `BadBank` for a member from a place that is not in the list (`Source.check`)."""
        for name, source in {BASE: self.base, **self.variants}.items():
            source.check(name, allowed)

    @classmethod
    def from_options(cls, base: str, variants: list[str]) -> BankSpec:
        """From the command line: the base's source, and one `name=source` per variant."""
        named: dict[str, Source] = {}
        for option in variants:
            name, equals, place = option.partition("=")
            name = nfc(name)
            if not equals or not place:
                raise BadBank(f"--variant {option}: write NAME=FOLDER")
            if name in named:
                raise BadBank(f"--variant names {name!r} twice")
            named[name] = Source.parse(place)
        return cls(Source.parse(base), named)

    @classmethod
    def from_toml(cls, path: Path) -> BankSpec:
        """From a file: `base = "FOLDER"`, a table `[variants]` of `name = "FOLDER"`, and perhaps `[segments]` of files.

        A source is a string (folder, `org/name`, `org/name@revision`) or a table {source, revision}.
        Folders and files are taken relative to the file.
        """
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadBank(f"the bank file {path} cannot be read: {error}") from error
        unknown = sorted(set(document) - {"base", "variants", "segments"})
        if unknown or "base" not in document:
            problem = f"unknown entry {unknown[0]!r}" if unknown else "no entry 'base'"
            raise BadBank(f"{path}: {problem}; a bank file has 'base', a table [variants], and may have [segments]")
        variants = document.get("variants", {})
        if not isinstance(variants, dict):
            raise BadBank(f"{path}: 'variants' must be a table of names and sources")
        segments = document.get("segments", {})
        if not isinstance(segments, dict) or not all(isinstance(file, str) for file in segments.values()):
            raise BadBank(f"{path}: 'segments' must be a table of variants (or 'auto') and files")
        return cls(
            _source(document["base"], path, BASE),
            {name: _source(value, path, name) for name, value in _by_name(path, variants).items()},
            {name: path.parent / file for name, file in _by_name(path, segments).items()},
        )


class Bank:
    """Base and variants: what is known of them and, in the arena, their weights (`models/bank_manifest.py` is a bank
    without).

    `delta_norms` (V) and `delta_angles` (V, V) say how far apart they lie, `warnings` what is doubtful about a variant,
    and `folders` where members came from on this machine.
    """

    def __init__(
        self,
        arena: Arena,
        network: Network,
        tokenizer: PreTrainedTokenizerFast,
        labels: list[str],
        sources: Mapping[str, str],
        fingerprint: str,
        delta_norms: list[float],
        delta_angles: list[list[float]],
        warnings: Mapping[str, list[str]],
        folders: Mapping[str, Path],
    ) -> None:
        self.arena = arena
        self.labels = labels
        self.tokenizer = tokenizer
        self.config = network.config
        self.network = network
        self.family = architecture_of(network.config)
        self.problem_type = problem_type(network.config)
        self.sources = dict(sources)
        self.loaded = time.time()
        self.fingerprint = fingerprint
        self.delta_norms = delta_norms
        self.delta_angles = delta_angles
        self.warnings = dict(warnings)
        self.folders = dict(folders)

    @property
    def variants(self) -> tuple[str, ...]:
        return self.arena.variants

    @property
    def architecture(self) -> str:
        return self.network.architecture

    @property
    def has_members(self) -> bool:
        """Whether blends can be built here; else they can only be had from others."""
        return self.arena.has_members

    @property
    def device(self) -> torch.device:
        return self.arena.rows.device

    @property
    def output_parameters(self) -> list[str]:
        """The weight and the bias of the linear layer whose outputs are the logits."""
        layer = output_layer(self.network.template(self.device), len(self.labels))
        return [name for name in (f"{layer}.weight", f"{layer}.bias") if name in self.arena.layout.names]

    def bind(self, vector: Tensor) -> PreTrainedModel:
        """A transformers model whose parameters are views of a flat vector (P,)."""
        return self.network.bind(vector)

    @property
    def about(self) -> bytes:
        """All that decides an answer except the weights and their names."""
        return _about(self.config, self.labels, self.arena, self.tokenizer)


def _about(config: PreTrainedConfig, labels: list[str], arena: Arena, tokenizer: PreTrainedTokenizerFast) -> bytes:
    about = {
        "config": _comparable(config),
        "labels": labels,
        "layout": arena.layout.describe(),
        "dtype": str(arena.rows.dtype),
        "tokenizer": _tokenizer_parts(tokenizer),
    }
    return json.dumps(about, sort_keys=True, default=str).encode()


def _fingerprint(about: bytes, arena: Arena) -> str:
    """SHA-256 over all that decides an answer: weights, names, labels, tokenizer, configuration."""
    digest = hashlib.sha256(b"tween bank 1\n" + about)
    for name in (BASE, *sorted(arena.variants)):
        digest.update(f"\n{name}\n".encode())
        digest.update(arena[name].cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_bank(spec: BankSpec, device: torch.device, dtype: torch.dtype = torch.float32) -> Bank:
    """Read every member, compare them, and lay them side by side in an arena on `device`, stored as `dtype`.

    Raises `BadBank` with one sentence that names the member and the first thing that does not fit.
    """
    started = time.perf_counter()
    _check_names(spec)
    sources = {BASE: spec.base, **spec.variants}
    folders = {name: source.folder(name) for name, source in sources.items()}
    configs = {name: read_config(name, folder) for name, folder in folders.items()}
    for name in spec.variants:
        _check_architecture(name, configs[BASE], configs[name])
    heads = {name: read_head(name, folder) for name, folder in folders.items()}
    labels = _common_labels(configs, {name: head for name, head in heads.items() if head is not None})

    base = read_checkpoint(BASE, folders[BASE], labels, heads[BASE] is not None)
    if base.tokenizer is None:
        raise BadBank(f"base: {folders[BASE]} holds no tokenizer")
    check_token_ids(BASE, base.tokenizer, configs[BASE])
    if base.labels is None and base.foreign is not None and "For" in base.foreign:
        log.warning("%s: %s", BASE, variant_checks.foreign_head(base.foreign))
    architecture = architecture_of(configs[BASE])
    shapes = [(name, tuple(p.shape)) for name, p in base.model.named_parameters()]
    layout = Layout(shapes, architecture.blocks if architecture else ())
    arena = Arena(layout, tuple(spec.variants), device, dtype)
    owners: dict[str, set[str]] = {name: set() for name in layout.names}
    for parameter in base.tensors:
        owners[parameter].add(BASE)
    arena.add(BASE, base.tensors)
    files, doubts = variant_checks.look_at(folders[BASE]), dict[str, list[str]]()
    for name in spec.variants:
        variant = read_checkpoint(name, folders[name], labels, heads[name] is not None)
        _check_tensors(variant, layout)
        if variant.tokenizer is not None:
            _check_tokenizer(name, base.tokenizer, variant.tokenizer)
        doubts[name] = [
            *variant_checks.doubts_about_labels(base.labels, variant.labels, variant.foreign),
            *variant_checks.doubts_about_tokenizers(base.tokenizer, variant.tokenizer),
            *variant_checks.doubts_about_files(files, variant_checks.look_at(folders[name])),
        ]
        arena.add(name, _aligned(variant, labels))
        for parameter in variant.tensors:
            owners[parameter].add(name)
    for parameter, having in owners.items():
        if not having:
            raise BadBank(f"no member holds {parameter}; at least one must be a trained classifier")
    arena.share({parameter: frozenset(having) for parameter, having in owners.items()})

    base.model.config.problem_type = next(configs[n] for n, head in heads.items() if head is not None).problem_type
    base.model.config.name_or_path = ""  # a path of this machine is nobody's business
    base.model.config.id2label = dict(enumerate(labels))
    base.model.config.label2id = {label: index for index, label in enumerate(labels)}
    base.model.to(device)  # type: ignore[arg-type]  # its decorator loses the signature
    network = Network.of(base.model, layout)
    network.release(arena[BASE])
    products = geometry.gram(arena.rows)
    for name, more in variant_checks.doubts_about_weights(arena, products).items():
        doubts[name] += [*more, *variant_checks.doubts_about_path(folders[name], arena, name)]
    for name, sentences in doubts.items():
        for sentence in sentences:
            log.warning("%s: %s", name, sentence)
    bank = Bank(
        arena,
        network,
        base.tokenizer,
        labels,
        {name: source.shown for name, source in sources.items()},
        _fingerprint(_about(network.config, labels, arena, base.tokenizer), arena),
        geometry.norms(products).tolist(),
        geometry.angles(products).tolist(),
        variant_checks.with_any(doubts),
        folders,
    )
    log.info("bank loaded: %s, %.1f s", ", ".join(arena.names), time.perf_counter() - started)
    return bank


def _by_name(path: Path, table: Mapping[str, T]) -> dict[str, T]:
    """A table of the bank file with its names in NFC."""
    named: dict[str, T] = {}
    for name, value in table.items():
        if nfc(name) in named:
            raise BadBank(f"{path} names {nfc(name)!r} twice")
        named[nfc(name)] = value
    return named


def _check_names(spec: BankSpec) -> None:
    for name in spec.variants:
        if not is_name(name):
            raise BadBank(
                f"variant name {name!r}: use letters and digits of any script, '_' and '-', {MAX_NAME} at most"
            )
        if name in RESERVED:
            raise BadBank(f"variant name {name!r} has a meaning of its own in recipes; choose another")


def _comparable(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that decide what its weights mean."""
    return {
        key: value for key, value in config.to_dict().items() if key not in VOLATILE_CONFIG and "dropout" not in key
    }


def _check_architecture(name: str, base: PreTrainedConfig, variant: PreTrainedConfig) -> None:
    if base.model_type != variant.model_type:
        raise BadBank(f"{name}: model_type is {variant.model_type!r}, the base's is {base.model_type!r}")
    ours, theirs = _comparable(base), _comparable(variant)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise BadBank(
                f"{name}: another architecture: {key} is {theirs.get(key)!r}, the base's is {ours.get(key)!r}"
            )


def _common_labels(configs: Mapping[str, PreTrainedConfig], heads: Mapping[str, list[str]]) -> list[str]:
    """The label names in the base's order (the first variant's, where the base has no head); `heads` has the labels of
    each member's own head."""
    if not heads:
        raise BadBank("no member is a sequence classifier; at least one must have a trained head")
    first, *others = heads
    labels = heads[first]
    if len({label.casefold() for label in labels}) != len(labels):
        raise BadBank(f"{first}: two labels have the same name: {', '.join(labels)}")
    kind = problem_type(configs[first])
    for name in others:
        _label_order(name, heads[name], labels, first)
        if problem_type(configs[name]) != kind:
            raise BadBank(f"{name}: problem_type is {problem_type(configs[name])}, {first}'s is {kind}")
    return labels


def _label_order(name: str, theirs: list[str], ours: list[str], ours_from: str) -> list[int]:
    """For each of our labels, its index among theirs; raises with the first label that has no partner."""
    indices = {label.casefold(): index for index, label in enumerate(theirs)}
    for label in ours:
        if label.casefold() not in indices:
            raise BadBank(f"{name}: no label {label!r}, which {ours_from} has; labels: {', '.join(theirs)}")
    if len(theirs) != len(ours):
        surplus = next(label for label in theirs if label.casefold() not in {o.casefold() for o in ours})
        raise BadBank(f"{name}: label {surplus!r} is unknown to {ours_from}, whose labels are {', '.join(ours)}")
    return [indices[label.casefold()] for label in ours]


def _check_tensors(variant: Checkpoint, layout: Layout) -> None:
    theirs = {name: tuple(p.shape) for name, p in variant.model.named_parameters()}
    for name, shape in ((place.name, place.shape) for place in layout.places):
        if theirs.pop(name, None) != shape:
            raise BadBank(f"{variant.member}: tensor {name} is absent or not of shape {shape} as in the base")
    if theirs:
        raise BadBank(f"{variant.member}: tensor {next(iter(theirs))} is unknown to the base")


def _aligned(variant: Checkpoint, labels: list[str]) -> dict[str, Tensor]:
    """The variant's tensors with the rows of its head in the order of `labels`.

    Heads are compared by the names of their labels: blended in another order they mix classes.
    """
    tensors = variant.tensors
    if variant.labels is None:
        return tensors
    order = _label_order(variant.member, variant.labels, labels, BASE)
    if order == list(range(len(labels))):
        return tensors
    head = output_layer(variant.model, len(labels))
    for name in (f"{head}.weight", f"{head}.bias"):
        if name in tensors:
            tensors[name] = tensors[name][order]
    return tensors


def _tokenizer_parts(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What decides which tokens a text becomes; padding and truncation are settings of the moment, of which side texts
    are cut on is the tokenizer's own."""
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for volatile in ("padding", "truncation", "version"):
        parts.pop(volatile, None)
    parts["truncation_side"] = tokenizer.truncation_side
    parts["split_special_tokens"] = tokenizer.split_special_tokens
    return parts


def _check_tokenizer(name: str, base: PreTrainedTokenizerFast, variant: PreTrainedTokenizerFast) -> None:
    ours, theirs = base.get_vocab(), variant.get_vocab()
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != index:
            raise BadBank(
                f"{name}: another tokenizer: token {token!r} is {theirs.get(token, 'absent')}, the base's is {index}"
            )
    if len(theirs) > len(ours):
        surplus = next(token for token in theirs if token not in ours)
        raise BadBank(f"{name}: another tokenizer: token {surplus!r} is unknown to the base")
    our_parts, their_parts = _tokenizer_parts(base), _tokenizer_parts(variant)
    for part in sorted(our_parts.keys() | their_parts.keys()):
        if our_parts.get(part) != their_parts.get(part):
            raise BadBank(f"{name}: another tokenizer: its {part} differs from the base's")


def _source(value: object, path: Path, member: str) -> Source:
    if isinstance(value, str):
        source = Source.parse(value)
    elif isinstance(value, dict) and isinstance(value.get("source"), str) and set(value) <= {"source", "revision"}:
        source = Source(value["source"], value.get("revision"))
    else:
        raise BadBank(f"{path}: {member} must be a folder or hub name, or {{source, revision}}")
    beside = path.parent / source.place
    return Source(str(beside), None) if beside.is_dir() else source
