"""Tiny but real Hugging Face models: every architecture that Tween serves, with random weights.

Base and variants share one tokenizer and one label set; a variant is the base plus a small random delta,
as a fine-tune is.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification as AutoClassifier
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

LABELS = ["negative", "neutral", "positive"]
WORDS = (
    "the a and not is was it this that you we they parcel refund came late early broken works great awful fine "
    "thanks please again never always answer call price good bad slow fast order help"
).split()
SPECIAL = ["<pad>", "<unk>", "<cls>", "<sep>", "<mask>"]
VOCABULARY = [
    *SPECIAL,
    *WORDS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'",
    *[f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"],
]

_COMMON = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
_SHAPE = {**_COMMON, "max_position_embeddings": 64, "vocab_size": len(VOCABULARY)}
_IDS = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**_SHAPE),
    "distilbert": DistilBertConfig(
        dim=32, hidden_dim=64, n_layers=2, n_heads=2, max_position_embeddings=64, vocab_size=len(VOCABULARY)
    ),
    "roberta": RobertaConfig(**_SHAPE, **_IDS),
    "xlm-roberta": XLMRobertaConfig(**_SHAPE, **_IDS),
    "electra": ElectraConfig(**_SHAPE, embedding_size=16),
    "deberta-v2": DebertaV2Config(
        **_SHAPE,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        pooler_hidden_size=32,
    ),
    "modernbert": ModernBertConfig(**_SHAPE, **_IDS, local_attention=8, global_attn_every_n_layers=2),
}


def tokenizer(vocabulary: list[str] | None = None, types: bool = True) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over a few words and all letters; `types`: its model tells a pair's parts apart."""
    vocabulary = vocabulary or VOCABULARY
    raw = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $A <sep> $B:1 <sep>:1", special_tokens=[("<cls>", 2), ("<sep>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<cls>",
        sep_token="<sep>",
        mask_token="<mask>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if types else [])],
    )


def model(architecture: str, seed: int, labels: list[str] = LABELS) -> PreTrainedModel:
    """A classifier with random weights, large enough that different weights give different answers."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture].__class__.from_dict(CONFIGS[architecture].to_dict())
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    made = AutoClassifier.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def variant_of(base: PreTrainedModel, architecture: str, seed: int) -> PreTrainedModel:
    """The base plus a random delta."""
    made = model(architecture, seed)
    made.load_state_dict(base.state_dict())
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def save(made: PreTrainedModel, folder: Path) -> Path:
    """Write model and tokenizer as a Hugging Face folder."""
    made.save_pretrained(folder)
    tokenizer(types=made.config.model_type in ("bert", "electra", "deberta-v2")).save_pretrained(folder)
    return folder


def write_bank(root: Path, architecture: str) -> Path:
    """Folders `base`, `angry` and `polite` below `root`, and `bank.toml`."""
    base = model(architecture, seed=1)
    save(base, root / "base")
    save(variant_of(base, architecture, seed=2), root / "angry")
    save(variant_of(base, architecture, seed=3), root / "polite")
    (root / "bank.toml").write_text('base = "base"\n[variants]\nangry = "angry"\npolite = "polite"\n')
    return root


def write_near(root: Path) -> Path:
    """Folders `base` and `near`, which is as far from it as a fine-tune is."""
    base = model("bert", seed=1)
    save(base, root / "base")
    near = variant_of(base, "bert", seed=2)
    state = base.state_dict()
    near.load_state_dict({k: state[k].lerp(v, 0.1) for k, v in near.state_dict().items()})
    save(near, root / "near")
    return root


def reference(architecture_folder: Path, weights: dict[str, float]) -> PreTrainedModel:
    """What Tween must equal: checkpoints blended tensor by tensor in float32, loaded into transformers."""
    members = {name: AutoClassifier.from_pretrained(architecture_folder / name) for name in weights}
    states = {name: made.state_dict() for name, made in members.items()}
    blended = next(iter(members.values()))
    first = next(iter(states.values()))
    blended.load_state_dict(
        {
            key: sum(weight * states[name][key] for name, weight in weights.items())
            if value.is_floating_point()
            else value
            for key, value in first.items()
        }
    )
    return blended.eval()
