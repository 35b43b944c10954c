"""Blends against the definition: checkpoints blended tensor by tensor and loaded into transformers."""

from __future__ import annotations

from pathlib import Path

import pico
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertModel

from app.models import operands, packed_forward
from app.models.bank import Bank, BankSpec, load_bank
from app.models.checkpoint import Source
from app.models.classifier import Classifier, Mix
from app.models.operands import FixedOperands
from app.models.packed_forward import Grid
from app.models.tokenizer import TextTokenizer
from app.weights.methods import METHODS
from app.weights.recipe import Cookbook

TEXTS = [
    "the parcel came late again",
    "thanks",
    ("is the refund fast?", "that was a great answer, thanks!"),
    "never order here, the price is awful and they always call again and again and again " * 2,
    "x y z",
]
RECIPES = ["base", "angry@0.4", "angry@1", "angry@0.3+polite@0.5", "angry..polite@0.7", "polite@-0.5", "angry@1.5"]


def blended(bank: Bank, weights: dict[str, float]) -> FixedOperands:
    """The blend of these weights, built."""
    slot = bank.arena.new_vector()
    METHODS["linear"](bank.arena, weights, slot)
    return FixedOperands(bank.arena.layout, slot)


def mix(bank: Bank, weights: dict[str, float]) -> Mix:
    """The blend of these weights, to be mixed row by row."""
    return Mix(bank.arena.shares_of(weights))


@pytest.fixture(scope="module", params=pico.CONFIGS)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write_bank(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def this_bank(architecture: Path) -> Bank:
    return load_bank(BankSpec.from_toml(architecture / "bank.toml"), torch.device("cpu"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_are_those_of_checkpoints_blended_tensor_by_tensor(
    architecture: Path, this_bank: Bank, recipe: str
) -> None:
    weights = Cookbook(this_bank.variants).read(recipe).weights
    slot = this_bank.arena.new_vector()
    METHODS["linear"](this_bank.arena, weights, slot)
    encoder = TextTokenizer(this_bank.tokenizer, this_bank.config, max_tokens=64)
    ours = Classifier(this_bank).logits(slot, encoder.encode(TEXTS))

    theirs = pico.reference(architecture, weights)
    for text, row in zip(TEXTS, ours, strict=True):
        inputs = this_bank.tokenizer(*([text] if isinstance(text, str) else text), truncation=True, return_tensors="pt")
        with torch.inference_mode():
            expected = theirs(**inputs).logits[0]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-4)
    assert len({tuple(row.tolist()) for row in ours}) == len(TEXTS)


@pytest.mark.parametrize("member", ["base", "angry", "polite"])
def test_the_ends_are_the_members_bit_for_bit(architecture: Path, this_bank: Bank, member: str) -> None:
    saved = AutoModelForSequenceClassification.from_pretrained(architecture / member)
    served = this_bank.bind(this_bank.arena[member])
    for name, parameter in saved.named_parameters():
        assert torch.equal(served.get_parameter(name), parameter), name


def test_rows_with_a_blend_each_have_the_logits_of_their_built_blends(this_bank: Bank) -> None:
    classifier = Classifier(this_bank)
    rows = TextTokenizer(this_bank.tokenizer, this_bank.config, 64).encode(TEXTS * 3)
    recipes = [*RECIPES, "polite@0.25", "angry@1+polite@1", "angry@0.000001", "polite", "angry@0.9", "base", "angry@2"]
    weights = [Cookbook(this_bank.variants).read(recipe).weights for recipe in recipes[: len(rows)]]
    rows = rows[: len(weights)]
    if not classifier.mixes:
        return  # this architecture runs through transformers, a blend at a time; the next test tells which do
    # Every third row is on a finished blend of its own, beside those that are mixed.
    each = [blended(this_bank, w) if i % 3 == 0 else mix(this_bank, w) for i, w in enumerate(weights)]
    mixed = classifier.batch(rows, each)
    slot = this_bank.arena.new_vector()
    for row, w, logits in zip(rows, weights, mixed, strict=True):
        METHODS["linear"](this_bank.arena, w, slot)
        torch.testing.assert_close(logits, classifier.logits(slot, [row])[0], rtol=0, atol=2e-5)


def test_the_bert_family_runs_packed_and_mixes(this_bank: Bank) -> None:
    packed_forward = this_bank.config.model_type not in ("deberta-v2", "modernbert")
    assert Classifier(this_bank).mixes is packed_forward


def test_a_text_that_spells_out_the_padding_token(this_bank: Bank, architecture: Path) -> None:
    row = TextTokenizer(this_bank.tokenizer, this_bank.config, 64).encode(["late <pad> order"])[0]
    assert this_bank.tokenizer.pad_token_id in row.ids
    saved = AutoModelForSequenceClassification.from_pretrained(architecture / "angry")
    with torch.inference_mode():
        expected = saved(**this_bank.tokenizer("late <pad> order", return_tensors="pt")).logits[0]
    torch.testing.assert_close(
        Classifier(this_bank).logits(this_bank.arena["angry"], [row])[0], expected, rtol=0, atol=1e-4
    )


def test_without_onednn_the_answers_are_the_same(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier(bank)
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(TEXTS)
    shares = [(0.6, 0.4, 0.0), (0.3, 0.7, 0.0), (0.2, 0.3, 0.5), (0.9, 0.0, 0.1), (0.7, 0.0, 0.3)]
    mixes = [Mix(one) for one in shares]
    before = classifier.logits(bank.arena["angry"], rows), classifier.batch(rows, mixes)
    monkeypatch.setattr(operands, "_ONEDNN", None)
    after = classifier.logits(bank.arena["angry"], rows), classifier.batch(rows, mixes)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)], ids=["32", "16"])
def test_a_head_that_only_the_variants_have_is_mixed_as_it_is_built(
    folders: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    BertModel(pico.CONFIGS["bert"]).save_pretrained(tmp_path / "base")
    pico.tokenizer().save_pretrained(tmp_path / "base")
    variants = {name: Source(str(folders / name)) for name in ("angry", "polite")}
    headless = load_bank(BankSpec(Source(str(tmp_path / "base")), variants), torch.device("cpu"), dtype)
    classifier, slot = Classifier(headless), headless.arena.new_vector()
    rows = TextTokenizer(headless.tokenizer, headless.config, 64).encode(TEXTS)
    recipes = ["base", "angry@0.2", "polite@0.9", "angry@0.3+polite@0.1", "angry@1"]
    weights = [Cookbook(headless.variants).read(recipe).weights for recipe in recipes]
    each = [blended(headless, w) if i == 2 else mix(headless, w) for i, w in enumerate(weights)]
    mixed = classifier.batch(rows, each)
    for row, w, logits in zip(rows, weights, mixed, strict=True):
        METHODS["linear"](headless.arena, w, slot)
        built = classifier.logits(slot, [row])[0]
        torch.testing.assert_close(logits, built, rtol=0, atol=tolerance * built.abs().max().clamp(min=1).item())
    level = headless.arena.shares_of(weights[3])  # as a ramp that does not rise
    ramped, flat = (classifier.batch(rows, [one] * len(rows)) for one in (Mix(level, level), Mix(level)))
    torch.testing.assert_close(ramped, flat, rtol=0, atol=tolerance * flat.abs().max().clamp(min=1).item())


def test_a_bound_model_runs_what_is_in_its_slot(bank: Bank) -> None:
    classifier, slot = Classifier(bank), bank.arena.new_vector()
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(["great answer"])
    seen = []
    for member in bank.arena.names:
        slot.copy_(bank.arena[member])
        seen.append(classifier.logits(slot, rows))
        torch.testing.assert_close(seen[-1], classifier.logits(bank.arena[member], rows), rtol=0, atol=0)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_a_bound_model_owns_no_weights(bank: Bank) -> None:
    vector = bank.arena.new_vector()
    start, stop = vector.data_ptr(), vector.data_ptr() + vector.numel() * vector.element_size()
    assert all(start <= p.data_ptr() < stop for p in bank.bind(vector).parameters())


def test_company_in_a_batch_does_not_change_an_answer(bank: Bank) -> None:
    classifier = Classifier(bank)
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(TEXTS)
    together = classifier.logits(bank.arena["angry"], rows)
    alone = torch.cat([classifier.logits(bank.arena["angry"], [row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_way_of_a_gpu_gives_the_same_logits(
    architecture: Path, this_bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = TextTokenizer(this_bank.tokenizer, this_bank.config, 64).encode(TEXTS)
    by_runs = Classifier(this_bank).logits(this_bank.arena["angry"], rows)
    monkeypatch.setattr(packed_forward, "texts_of", Grid)
    in_a_grid = Classifier(this_bank).logits(this_bank.arena["angry"], rows)
    torch.testing.assert_close(in_a_grid, by_runs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", ["angry@0.4", "angry@0.3+polite@0.5", "polite"])
def test_half_precision_is_near_and_takes_half_the_bytes(spec: BankSpec, bank: Bank, recipe: str) -> None:
    half = load_bank(spec, torch.device("cpu"), torch.bfloat16)
    assert half.arena.row_bytes * 2 == bank.arena.row_bytes and half.fingerprint != bank.fingerprint
    rows = TextTokenizer(bank.tokenizer, bank.config, 64).encode(TEXTS)
    weights = Cookbook(bank.variants).read(recipe).weights
    slots = [one.arena.new_vector() for one in (half, bank)]
    for one, slot in zip((half, bank), slots, strict=True):
        METHODS["linear"](one.arena, weights, slot)
    # Rounded once, from sums in float32: half a unit in the last of 8 bits.
    torch.testing.assert_close(slots[0].float(), slots[1], rtol=2**-7, atol=2e-3)
    ours, theirs = Classifier(half).logits(slots[0], rows), Classifier(bank).logits(slots[1], rows)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * theirs.abs().max().item())
    mixed = Classifier(half).batch(rows, [mix(half, weights)] * len(rows))
    torch.testing.assert_close(mixed, theirs, rtol=0, atol=0.03 * theirs.abs().max().item())


def test_half_precision_through_transformers(tmp_path: Path) -> None:
    folders = pico.write_bank(tmp_path, "modernbert")
    banks = [
        load_bank(BankSpec.from_toml(folders / "bank.toml"), torch.device("cpu"), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    rows = TextTokenizer(banks[0].tokenizer, banks[0].config, 64).encode(TEXTS)
    theirs, ours = (Classifier(one).logits(one.arena["angry"], rows) for one in banks)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05 * theirs.abs().max().item())


def test_batches_have_few_numbers_of_tokens(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def noted(x: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append(len(x))
        return operands.plain_product(x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(operands, "product", noted)
    classifier, encoder, seen = Classifier(bank), TextTokenizer(bank.tokenizer, bank.config, 64), set()
    for count in range(1, 120):
        rows = encoder.encode(["late " * (i % 60) for i in range(count)])
        tokens = sum(len(row) for row in rows)
        calls.clear()
        assert len(classifier.logits(bank.arena["angry"], rows)) == count
        assert tokens <= calls[0] <= max(1.125 * tokens, tokens + 4)
        seen.update(calls)
    assert len(seen) < 60
