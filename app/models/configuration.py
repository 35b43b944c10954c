"""A member's config.json: what the architecture itself reads, and nothing that chooses code or files.

transformers sets any key of the file as an attribute and looks some up later, among them names of attention kernels on
the hub, of weight files and of quantizers. So only names that the served architectures read are handed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.configuration_utils import PreTrainedConfig

from app.errors import BadBank

SERVED = ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "deberta-v2", "modernbert")
"""Values of `model_type` whose blends are tested against transformers."""

FURTHER = frozenset(
    "num_labels position_embedding_type"
    " attention_head_size share_att_key position_buckets norm_rel_ebd conv_kernel_size conv_groups conv_act"
    " embedding_size pooler_hidden_size cls_dropout"
    " head_dim sliding_window global_attn_every_n_layers global_rope_theta local_rope_theta rope_scaling"
    " rope_theta".split()
)
"""Names that architectures or older files use besides the fields of their configuration."""
OURS = frozenset({"dtype"})
"""Fields that Tween decides and no file."""
QUANTIZED = ("quantization_config", "compression_config")
SEQUENCE_CLASSIFIER = "ForSequenceClassification"


def read_config(member: str, folder: Path) -> PreTrainedConfig:
    """The model's configuration; raises `BadBank` if it is absent, broken, or of a kind not served."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadBank(f"{member}: {folder} holds no config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, OSError, RecursionError) as error:
        raise BadBank(f"{member}: {path} cannot be read: {error}") from error
    if raw.get("model_type") not in SERVED:
        raise BadBank(f"{member}: model_type is {str(raw.get('model_type'))[:60]!r}; served: {', '.join(SERVED)}")
    for key in QUANTIZED:
        if raw.get(key) is not None:
            raise BadBank(
                f"{member}: {path} has {key}; quantized weights are not served, save them as they were before"
            )
    try:
        return config_of(raw)
    except Exception as error:  # what the library raises for values that it does not expect is its to choose
        raise BadBank(f"{member}: {path} cannot be read: {first_line(error)}") from error


def config_of(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration that a config.json's contents give, of a served `model_type`."""
    kind = CONFIG_MAPPING[raw["model_type"]]
    known = ({field.name for field in fields(kind)} | set(kind.attribute_map) | FURTHER) - OURS
    config: PreTrainedConfig = kind(**{key: value for key, value in raw.items() if key in known})
    config.dtype = torch.float32
    declared = config.architectures
    if declared is not None and not (isinstance(declared, list) and all(isinstance(name, str) for name in declared)):
        raise ValueError("architectures is no list of names")
    if len(set(label_names(config))) == 0 or not all(isinstance(name, str) for name in label_names(config)):
        raise ValueError("id2label gives no names")
    return config


def label_names(config: PreTrainedConfig) -> list[str]:
    """Label names in the order of the logits."""
    names: dict[int, str] = config.id2label  # type: ignore[assignment]  # transformers makes the keys int
    return [names[index] for index in sorted(names)]


def foreign_architecture(config: PreTrainedConfig) -> str | None:
    """The class that the weights were saved from, if that is no sequence classifier: its head, if it has one, means
    something else, even where its parameters have the names of ours. None too where the file does not say."""
    declared = config.architectures or []
    return None if not declared or any(name.endswith(SEQUENCE_CLASSIFIER) for name in declared) else declared[0][:60]


def problem_type(config: PreTrainedConfig) -> str:
    """What the logits mean: `single_label_classification`, `multi_label_classification` or `regression`.

    A configuration that does not say is read as transformers reads it when it trains.
    """
    default = "regression" if len(label_names(config)) == 1 else "single_label_classification"
    kind: str | None = config.problem_type
    return kind or default


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
