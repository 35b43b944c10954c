"""What is doubtful about a variant is told; a real fine-tune gives no reason to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
from conftest import Service
from redis import Redis
from safetensors.torch import load_file, save_file
from test_bank import CPU, edit_config, edit_weights, load
from transformers import BertModel

from app.__main__ import _parser
from app.errors import BadBank, BadData
from app.models.bank import Bank, BankSpec, load_bank
from app.models.bank_manifest import read_card, write_card
from app.models.checkpoint import Source
from app.models.variant_checks import RECORD, Recorded, digest_of, record_barrier

pytestmark = pytest.mark.patient("a call that a busy machine delays must not count as Redis away")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base` and `near`, which is as far from it as a fine-tune is."""
    return pico.write_near(tmp_path_factory.mktemp("admission"))


@pytest.fixture
def odd(root: Path, tmp_path: Path) -> Path:
    """A copy of `near`, for a test to change."""
    return Path(shutil.copytree(root / "near", tmp_path / "odd"))


def test_a_fine_tune_of_the_base_is_beyond_doubt(root: Path) -> None:
    assert load(root, near=root / "near").warnings == {}


def test_a_variant_of_another_base_is_told_with_its_size_and_angle(root: Path, tmp_path: Path) -> None:
    stranger = pico.save(pico.model("bert", seed=77), tmp_path / "stranger")
    bank = load(root, near=root / "near", stranger=stranger)
    (sentence,) = bank.warnings.pop("stranger")
    assert bank.warnings == {} and "is this the base that it was fine-tuned from?" in sentence
    base, row = (bank.arena[name].double() for name in ("base", "stranger"))
    ratio = float((row - base).norm() / base.norm())
    degrees = float(torch.rad2deg(torch.arccos(base @ row / base.norm() / row.norm())))
    assert f"{ratio:.2f} times as long as the base, and its weights lie {degrees:.0f} degrees from it" in sentence


def test_a_variant_that_is_the_base_or_another_variant_is_told(root: Path, odd: Path) -> None:
    bank = load(root, near=root / "near", twin=odd, same=root / "base")
    assert bank.warnings == {
        "twin": ["its delta points where that of near points: is it the same variant twice?"],
        "same": ["its weights are the base's: every t gives the same"],
    }


def test_half_precision_is_told(root: Path, odd: Path) -> None:
    weights = load_file(odd / "model.safetensors")
    halves = {name: values.bfloat16() for name, values in weights.items()}
    save_file(halves, odd / "model.safetensors", metadata={"format": "pt"})
    (sentence,) = load(root, odd=odd).warnings["odd"]
    assert sentence == "its weights were saved as bfloat16: what that rounded away is part of its delta"


def test_integers_that_differ_from_the_bases_are_told(root: Path, odd: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    name = "bert.embeddings.position_ids"
    edit_weights(base, lambda tensors: tensors.update({name: torch.arange(64)[None]}))
    edit_weights(odd, lambda tensors: tensors.update({name: torch.arange(64)[None]}))
    assert load(tmp_path, odd=odd).warnings == {}
    edit_weights(odd, lambda tensors: tensors.update({name: torch.arange(64)[None] // 2}))
    bank = load(tmp_path, odd=odd)
    assert bank.warnings == {"odd": [f"its {name} differs from the base's, which is used"]}


def test_labels_that_are_only_numbered_are_told(tmp_path: Path, root: Path, odd: Path) -> None:
    labels = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    for folder in (base, odd):
        edit_config(folder, id2label=labels, label2id={label: int(i) for i, label in labels.items()})
    (sentence,) = load(tmp_path, odd=odd).warnings["odd"]
    assert sentence.startswith("its labels are only numbered (LABEL_0, ...)")


def test_a_variant_without_head_or_tokenizer_is_told(root: Path, tmp_path: Path) -> None:
    BertModel(pico.CONFIGS["bert"]).save_pretrained(tmp_path / "bare")
    sentences = load(root, near=root / "near", bare=tmp_path / "bare").warnings["bare"]
    assert sentences[:2] == [
        "it has no classification head: the mean of the other members' is used",
        "it brings no tokenizer: the base's is used",
    ]


def test_a_tokenizer_that_reads_less_or_other_types_is_told(root: Path, odd: Path) -> None:
    path = odd / "tokenizer_config.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"model_max_length": 32, "model_input_names": ["input_ids", "attention_mask"]}))
    assert load(root, odd=odd).warnings["odd"] == [
        "its tokenizer reads 32 tokens of a text, the base's reads 64 tokens, which is what counts",
        "its tokenizer and the base's differ in whether a pair's texts have types: the base's are used",
    ]
    path.write_text(json.dumps(kept | {"model_max_length": int(1e30)}))
    (sentence,) = load(root, odd=odd).warnings["odd"]
    assert sentence.startswith("its tokenizer reads any number of tokens of a text")


def test_numbers_that_are_not_finite_stay_refused(root: Path, odd: Path) -> None:
    edit_weights(odd, lambda tensors: tensors["classifier.bias"].fill_(torch.nan))
    with pytest.raises(BadBank, match=r"odd: classifier\.bias holds a number that is not finite"):
        load(root, odd=odd)


# -- a barrier that was found ------------------------------------------------------------------------------

SENTENCE = "base..odd has a barrier: on 100 labelled texts, the error at t = 0.5 is 9.0 points above the line"


def recorded(root: Path, odd: Path, text: str | None = None, connected: bool = False) -> Bank:
    bank = load(root, odd=odd)
    record_barrier(odd, Recorded(digest_of(bank.arena, "odd"), connected, SENTENCE))
    if text is not None:
        (odd / RECORD).write_text(text)
    return load(root, odd=odd)


def test_a_recorded_barrier_is_told_as_long_as_these_are_the_weights(root: Path, odd: Path) -> None:
    assert recorded(root, odd).warnings == {"odd": [SENTENCE]}
    edit_weights(odd, lambda tensors: tensors["classifier.bias"].add_(0.001))
    (sentence,) = load(root, odd=odd).warnings["odd"]
    assert sentence.startswith(f"{RECORD} beside it is about other weights")


def test_a_record_that_says_connected_says_nothing(root: Path, odd: Path) -> None:
    assert recorded(root, odd, connected=True).warnings == {}


@pytest.mark.parametrize("text", ["", "[]", '{"digest": "x"}', "\x00"])
def test_a_record_that_cannot_be_read_is_told_and_harms_nothing(root: Path, odd: Path, text: str) -> None:
    (sentence,) = recorded(root, odd, text).warnings["odd"]
    assert sentence.startswith(f"{RECORD} beside it cannot be read")


def run(root: Path, odd: Path, *more: str) -> int:
    """`tween barrier`, in this process."""
    (root / "texts.csv").write_text("text\n" + "".join(f"the order is late {c}\n" for c in "abcdefghijklmnopqrst"))
    bank = ["--base", str(root / "base"), "--variant", f"odd={odd}"]
    options = _parser().parse_args(["barrier", str(root / "texts.csv"), *bank, *more])
    status: int = options.run(options)
    return status


def test_the_command_keeps_its_verdict_beside_the_variant(
    root: Path, odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run(root, odd, "--record") == 0
    said = capsys.readouterr().out
    kept = json.loads((odd / RECORD).read_text())
    assert kept["sentence"] in said and f"Recorded in {odd / RECORD}" in said
    assert kept["digest"] == digest_of(load(root, odd=odd).arena, "odd")
    assert load(root, odd=odd).warnings == ({} if kept["connected"] else {"odd": [kept["sentence"]]})
    with pytest.raises(BadData, match=r"--record: odd\.\.base is no line from the base to a variant"):
        run(root, odd, "--record", "--line", "odd..base")


# -- where it is told --------------------------------------------------------------------------------------


def test_warnings_are_in_the_bank_and_in_the_probe(
    serve: Callable[..., Service], root: Path, odd: Path, redis: Redis
) -> None:
    folders = {"near": Source(str(root / "near")), "same": Source(str(root / "base"))}
    client = serve(BankSpec(Source(str(root / "base")), folders)).client
    sentence = "its weights are the base's: every t gives the same"
    assert [v["warnings"] for v in client.get("/v1/bank").json()["variants"]] == [[], [sentence]]
    assert client.get("/readyz").json()["warnings"] == {"same": [sentence]}


def test_pods_without_members_know_them(root: Path) -> None:
    bank = load_bank(BankSpec(Source(str(root / "base")), {"same": Source(str(root / "base"))}), CPU)
    assert read_card(write_card(bank), bank.fingerprint, CPU).warnings == bank.warnings != {}
