"""What the Bert family has in common: which parameter plays which role, by `model_type`.

Bert (MiniLM is one), Roberta, XLM-Roberta, Electra and DistilBert are one encoder under five sets of names.
Architectures that are not here run through transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers.configuration_utils import PreTrainedConfig


@dataclass(frozen=True)
class EncoderLayer:
    """Names of one encoder layer's linear layers and norms, without `.weight` and `.bias`."""

    qkv: tuple[str, str, str]
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


@dataclass(frozen=True)
class Architecture:
    """An encoder with a head: names of its parameters, and the numbers that its mathematics needs.

    `head` lists linear layers with the activation after each. `first_position` is the position of the first token.
    """

    embeddings: str
    types: bool
    layers: tuple[EncoderLayer, ...]
    head: tuple[tuple[str, str | None], ...]
    heads: int
    epsilon: float
    activation: str
    project: str | None = None
    first_position: int = 0
    padding: int | None = None

    @property
    def large_blocks(self) -> list[tuple[str, ...]]:
        """The linear layers that every token runs through: nearly all of the arithmetic."""
        return [block for layer in self.layers for block in (layer.qkv, (layer.out,), (layer.up,), (layer.down,))]

    @property
    def blocks(self) -> list[tuple[str, ...]]:
        """Linear layers whose weights lie side by side, for `Layout`."""
        project: list[tuple[str, ...]] = [(self.project,)] if self.project else []
        return project + self.large_blocks + [(name,) for name, _ in self.head]


def architecture_of(config: PreTrainedConfig) -> Architecture | None:
    """The architecture of a configuration; None if it is not of the family or has a feature that is not shared."""
    make = ARCHITECTURES.get(config.model_type)
    if make is None or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    architecture = make(config)
    return architecture if architecture.activation == "gelu" else None


def _bert_layers(prefix: str, count: int) -> tuple[EncoderLayer, ...]:
    names = [f"{prefix}.encoder.layer.{i}" for i in range(count)]
    return tuple(
        EncoderLayer(
            qkv=(f"{n}.attention.self.query", f"{n}.attention.self.key", f"{n}.attention.self.value"),
            out=f"{n}.attention.output.dense",
            attention_norm=f"{n}.attention.output.LayerNorm",
            up=f"{n}.intermediate.dense",
            down=f"{n}.output.dense",
            output_norm=f"{n}.output.LayerNorm",
        )
        for n in names
    )


def _bert(config: PreTrainedConfig) -> Architecture:
    return Architecture(
        embeddings="bert.embeddings",
        types=True,
        layers=_bert_layers("bert", config.num_hidden_layers),
        head=(("bert.pooler.dense", "tanh"), ("classifier", None)),
        heads=config.num_attention_heads,
        epsilon=config.layer_norm_eps,
        activation=config.hidden_act,
    )


def _roberta(config: PreTrainedConfig) -> Architecture:
    return Architecture(
        embeddings="roberta.embeddings",
        types=True,
        layers=_bert_layers("roberta", config.num_hidden_layers),
        head=(("classifier.dense", "tanh"), ("classifier.out_proj", None)),
        heads=config.num_attention_heads,
        epsilon=config.layer_norm_eps,
        activation=config.hidden_act,
        first_position=config.pad_token_id + 1,
        padding=config.pad_token_id,
    )


def _electra(config: PreTrainedConfig) -> Architecture:
    return Architecture(
        embeddings="electra.embeddings",
        types=True,
        layers=_bert_layers("electra", config.num_hidden_layers),
        head=(("classifier.dense", "gelu"), ("classifier.out_proj", None)),
        heads=config.num_attention_heads,
        epsilon=config.layer_norm_eps,
        activation=config.hidden_act,
        project="electra.embeddings_project" if config.embedding_size != config.hidden_size else None,
    )


def _distilbert(config: PreTrainedConfig) -> Architecture:
    names = [f"distilbert.transformer.layer.{i}" for i in range(config.n_layers)]
    layers = tuple(
        EncoderLayer(
            qkv=(f"{n}.attention.q_lin", f"{n}.attention.k_lin", f"{n}.attention.v_lin"),
            out=f"{n}.attention.out_lin",
            attention_norm=f"{n}.sa_layer_norm",
            up=f"{n}.ffn.lin1",
            down=f"{n}.ffn.lin2",
            output_norm=f"{n}.output_layer_norm",
        )
        for n in names
    )
    return Architecture(
        embeddings="distilbert.embeddings",
        types=False,
        layers=layers,
        head=(("pre_classifier", "relu"), ("classifier", None)),
        heads=config.n_heads,
        epsilon=1e-12,
        activation=config.activation,
    )


ARCHITECTURES: dict[str, Callable[[PreTrainedConfig], Architecture]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "electra": _electra,
    "distilbert": _distilbert,
}
