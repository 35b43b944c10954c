"""What a member's files may say and hold: heads that are not ours, numbers of tokens, and keys that choose code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import zlib
from pathlib import Path

import pico
import pytest
import torch
import transformers
from test_bank import CPU, edit_config, edit_weights, load, refusal, without
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForTokenClassification,
)

from app.models.bank import BankSpec, load_bank
from app.models.bank_manifest import read_card, write_card
from app.models.checkpoint import Source
from app.models.classifier import Classifier
from app.models.configuration import FURTHER, OURS, SERVED, config_of, read_config
from app.models.tokenizer import TextTokenizer

TEXT = "the refund came late again"


@pytest.fixture(params=list(pico.CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folders `base`, `angry` and `polite` of any architecture, for a test to change."""
    return pico.write_bank(tmp_path, request.param)


@pytest.fixture
def bert(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders, tmp_path / "bert"))


def forget(folder: Path, key: str) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw.pop(key, None)
    path.write_text(json.dumps(raw))


def scores(folder: Path, recipe_of: str, **variants: Path) -> dict[str, float]:
    """Logits of a member by the name of their label, as Tween gives them."""
    bank = load(folder, **variants)
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode([TEXT])
    return dict(zip(bank.labels, Classifier(bank).logits(bank.arena[recipe_of], rows)[0].tolist(), strict=True))


def scores_of_transformers(folder: Path) -> dict[str, float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(**AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")).logits[0].tolist()
    return {model.config.id2label[index]: logit for index, logit in enumerate(logits)}


# -- heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
def test_labels_are_aligned_whether_or_not_the_class_is_named(folder: Path, declared: bool) -> None:
    labels = [pico.LABELS[i] for i in (2, 0, 1)]
    edit_config(folder / "angry", id2label=dict(enumerate(labels)), label2id={})
    if not declared:
        forget(folder / "angry", "architectures")
    expected = scores_of_transformers(folder / "angry")
    assert scores(folder, "odd", odd=folder / "angry") == pytest.approx(expected, abs=1e-5)


def test_a_variant_with_a_head_is_not_said_to_have_none(bert: Path) -> None:
    forget(bert / "angry", "architectures")
    assert not [told for told in load(bert, odd=bert / "angry").warnings["odd"] if "head" in told]


def test_another_label_set_is_refused_where_the_class_is_not_named(bert: Path) -> None:
    forget(bert / "angry", "architectures")
    edit_config(bert / "angry", id2label={0: "negative", 1: "neutral", 2: "joyful"}, label2id={})
    assert "odd: no label 'positive', which base has" in refusal(bert, odd=bert / "angry")


@pytest.mark.parametrize("labels", [3, 9])
def test_the_head_of_a_token_classifier_is_never_ours(folder: Path, labels: int) -> None:
    """Not even where it has as many labels: its parameters often have the names of ours."""
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    kind = type(AutoModelForTokenClassification.from_config(classifier.config))
    names = {"id2label": {i: f"TAG_{i}" for i in range(labels)}, "label2id": {f"TAG_{i}": i for i in range(labels)}}
    tagger = kind.from_pretrained(folder / "base", **names, ignore_mismatched_sizes=True)
    with torch.no_grad():
        for parameter in tagger.classifier.parameters():
            parameter.fill_(100.0)
    pico.save(tagger, folder / "tagger")
    spec = BankSpec(Source(str(folder / "tagger")), {"angry": Source(str(folder / "angry"))})
    bank = load_bank(spec, CPU)
    ours = bank.arena.layout.views(bank.arena["base"])
    theirs = bank.arena.layout.views(bank.arena["angry"])
    head = [name for name in ours if not name.startswith(classifier.base_model_prefix + ".")]
    assert head and all(torch.equal(ours[name], theirs[name]) for name in head)
    told = load(folder, odd=folder / "tagger").warnings["odd"][0]
    assert told.startswith(f"it was saved as {kind.__name__}, whose head means something else")


def test_a_base_with_another_head_is_told_in_the_log(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    pico.save(BertForTokenClassification(pico.CONFIGS["bert"]), bert / "base")
    load(bert, angry=bert / "angry")
    assert "base: it was saved as BertForTokenClassification" in caplog.text


def test_weights_without_a_head_have_none_where_the_class_is_not_named(bert: Path) -> None:
    forget(bert / "angry", "architectures")
    edit_weights(bert / "angry", without("classifier.bias"))
    assert "odd: the weights lack classifier.bias" in refusal(bert, odd=bert / "angry")
    edit_weights(bert / "angry", without("classifier.weight"))
    bank = load(bert, odd=bert / "angry")
    assert bank.warnings["odd"][:1] == ["it has no classification head: the mean of the other members' is used"]
    heads = [bank.arena.layout.views(bank.arena[name])["classifier.weight"] for name in ("base", "odd")]
    assert torch.equal(*heads)


# -- numbers of tokens ---------------------------------------------------------------------------------


def test_a_token_beyond_the_embedding_is_refused(bert: Path) -> None:
    tokenizer = pico.tokenizer()
    tokenizer.add_tokens(["refundable", "refunded"])
    tokenizer.save_pretrained(bert / "base")
    last = len(pico.VOCABULARY) - 1
    assert tokenizer.convert_tokens_to_ids("refunded") == last + 1
    told = refusal(bert)
    assert (
        f"base: its tokenizer gives 'refunded' the number {last + 1}, and its embedding has rows 0 to {last};" in told
    )


def test_a_special_token_that_a_template_numbers_beyond_the_embedding_is_refused(bert: Path) -> None:
    path = bert / "base" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["post_processor"]["special_tokens"]["<sep>"]["ids"] = [9_000]
    path.write_text(json.dumps(raw))
    assert "base: its tokenizer gives '<sep>' the number 9000" in refusal(bert)


def test_a_part_of_a_pair_that_the_model_has_no_type_for_is_refused(tmp_path: Path) -> None:
    config = pico.CONFIGS["bert"].__class__.from_dict(pico.CONFIGS["bert"].to_dict() | {"type_vocab_size": 1})
    config.id2label = dict(enumerate(pico.LABELS))
    pico.save(AutoModelForSequenceClassification.from_config(config), tmp_path / "base")
    assert "base: its tokenizer gives a part of a pair the type 1, and its embedding has types 0 to 0" in (
        refusal(tmp_path)
    )


# -- keys that choose code -----------------------------------------------------------------------------


HOSTILE: dict[str, object] = {
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "_attn_implementation_internal": "evil/kernel",
    "experts_implementation": "evil/kernel",
    "transformers_weights": "../../elsewhere/model.safetensors",
    "fusion_config": {"fuse_qkv": True},
    "kernel_config": {"kernel_mapping": {"BertSelfAttention": "evil/kernel:Attention"}},
    "per_layer_config": {"0": {"hidden_size": 16}},
    "auto_map": {"AutoConfig": "evil/repo--evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"},
    "custom_pipelines": {"text-classification": {"impl": "evil.Evil"}},
    "dtype": "load",
    "torch_dtype": "classes",
    "to_dict": "evil",
    "extra_files": ["evil.safetensors"],
    "sub_configs": {"evil": "evil"},
    "base_model_tp_plan": {"layers.*": "evil"},
    "attribute_map": {"hidden_size": "evil"},
    "gguf_file": "evil.gguf",
    "use_kernels": True,
    "trust_remote_code": True,
    "_name_or_path": "evil/repo",
}


@pytest.mark.parametrize("key", HOSTILE)
def test_no_key_of_a_configuration_chooses_code_or_files(folder: Path, key: str) -> None:
    """Each is as if it were not there: same bank, nothing of hubs loaded, the attention that Tween names."""
    spec = BankSpec.from_toml(folder / "bank.toml")
    plain = load_bank(spec, CPU)
    (folder / "base" / "evil.py").write_text("raise SystemExit('code of a folder was run')\n")
    for member in ("base", "angry", "polite"):
        edit_config(folder / member, **{key: HOSTILE[key]})
    bank = load_bank(spec, CPU)
    assert bank.fingerprint == plain.fingerprint
    assert bank.config._attn_implementation in ("sdpa", "eager")
    assert bank.network.template(CPU).config._attn_implementation in ("sdpa", "eager")
    assert not {"kernels", "evil", "bitsandbytes"} & set(sys.modules)


def test_a_card_chooses_no_code_either(bert: Path) -> None:
    bank = load_bank(BankSpec.from_toml(bert / "bank.toml"), CPU)
    body = json.loads(json.loads(zlib.decompress(write_card(bank)))["body"])
    body["config"] |= HOSTILE
    text = json.dumps(body)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    read = read_card(zlib.compress(json.dumps({"checksum": checksum, "body": text}).encode()), bank.fingerprint, CPU)
    assert not hasattr(read.config, "transformers_weights")
    assert read.network.template(CPU).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantized_weights_are_refused(bert: Path, key: str) -> None:
    edit_config(bert / "angry", **{key: {"quant_method": "bitsandbytes", "load_in_8bit": True}})
    assert f"config.json has {key}; quantized weights are not served" in refusal(bert, odd=bert / "angry")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": 5},
        {"hidden_act": "evil"},
        {"num_hidden_layers": "x"},
        {"hidden_size": -1},
        {"num_attention_heads": 0},
        {"vocab_size": -5},
        {"pad_token_id": 10**9},
        {"id2label": {"a": "b"}},
        {"id2label": [1]},
        {"id2label": {}},
        {"id2label": {"0": 5, "1": None, "2": []}},
        {"architectures": "BertForSequenceClassification"},
        {"architectures": [5]},
        {"architectures": {"a": 1}},
        {"model_type": ["bert"]},
        {"model_type": None},
    ],
    ids=str,
)
def test_a_configuration_with_impossible_values_is_refused_in_a_sentence(
    bert: Path, changes: dict[str, object]
) -> None:
    edit_config(bert / "base", **changes)
    told = refusal(bert)
    assert told.startswith("base: ") and "\n" not in told


@pytest.mark.parametrize("text", ["[]", "null", "5", '"bert"', "[" * 100_000, '{"model_type": "bert"'])
def test_a_configuration_that_is_no_object_is_refused(bert: Path, text: str) -> None:
    (bert / "base" / "config.json").write_text(text)
    assert "config.json cannot be read" in refusal(bert)


def test_a_configuration_is_read_as_transformers_reads_it(folder: Path) -> None:
    ours, theirs = read_config("base", folder / "base"), AutoConfig.from_pretrained(folder / "base")
    dropped = {"dtype", "cls_token_id", "sep_token_id", "_name_or_path"}  # of no use to a classifier, or ours to say
    wanted = {key: value for key, value in theirs.to_dict().items() if key not in dropped}
    assert {key: value for key, value in ours.to_dict().items() if key not in dropped} == wanted


def names_read(kind: str) -> set[str]:
    """Names that transformers' own files of an architecture look up in its configuration."""
    folder = Path(transformers.__file__).parent / "models" / kind.replace("-", "_")
    source = "".join(path.read_text() for path in (*folder.glob("modeling_*.py"), *folder.glob("configuration_*.py")))
    patterns = (r"\bconfig\.(\w+)", r'getattr\((?:self\.)?config, "(\w+)"', r'kwargs\.(?:get|pop)\("(\w+)"')
    return {name for pattern in patterns for name in re.findall(pattern, source)}


NOT_OF_THE_FILE = {"_attn_implementation", "to_dict", "summary_proj_to_labels", "summary_first_dropout"}
"""What Tween names itself, methods, and what only another head of Electra reads."""


@pytest.mark.parametrize("kind", SERVED)
def test_all_that_an_architecture_reads_is_handed_on(kind: str) -> None:
    values = {name: None for name in names_read(kind) - NOT_OF_THE_FILE}
    config = transformers.CONFIG_MAPPING[kind]
    known = {name for name in values if name in vars(config()) or name in config.attribute_map or name in FURTHER}
    assert names_read(kind) - NOT_OF_THE_FILE <= known | OURS | set(dir(config))


def test_older_names_still_count(tmp_path: Path) -> None:
    raw = {"model_type": "modernbert", "global_attn_every_n_layers": 2, "num_hidden_layers": 4, "num_labels": 3}
    config = config_of(raw)
    assert config.layer_types == ["full_attention", "sliding_attention"] * 2 and len(config.id2label) == 3
