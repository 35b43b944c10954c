from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pico
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.models.bank import BankSpec
from app.sweep.data.dataset import Dataset
from app.sweep.diagnostics.fgsm import FastGradient
from app.sweep.diagnostics.robustness import ATTACK, PERTURBATIONS, dropped_word, perturbed, robustness, spaces, typos
from app.sweep.logits.line import Line
from app.sweep.logits.local_provider import LocalProvider
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore

TEXT = "The parcel came late, and nobody at the service desk could tell me why."


@given(st.text(min_size=1).filter(str.strip), st.sampled_from(sorted(PERTURBATIONS)), st.integers(0, 99))
def test_any_text_stays_a_text_and_follows_from_the_seed(text: str, name: str, seed: int) -> None:
    made = perturbed(text, name, seed)
    assert made.strip() and made == perturbed(text, name, seed)


def test_each_perturbation_does_what_it_says() -> None:
    for seed in range(30):
        typo = typos(TEXT, Random(seed)).split(" ")
        changed = [(a, b) for a, b in zip(TEXT.split(" "), typo, strict=True) if a != b]
        assert len(changed) <= 1, "ten words get one typo, which may hit nothing"
        assert all(a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in changed)
        assert len(dropped_word(TEXT, Random(seed)).split()) == len(TEXT.split()) - 1
        assert "".join(spaces(TEXT, Random(seed)).split()) == "".join(TEXT.split())
        assert perturbed(TEXT, "casing", seed).casefold() == TEXT.casefold()
    assert len({perturbed(TEXT, "typos", seed) for seed in range(30)}) > 15
    assert dropped_word("no thanks", Random(0)) == "no thanks"


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "deberta-v2", "modernbert"])
def provider(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalProvider:
    root: Path = pico.write_bank(tmp_path_factory.mktemp("pico"), request.param)
    return LocalProvider.load(BankSpec.from_toml(root / "bank.toml"), torch.device("cpu"), torch.float32, max_tokens=64)


@pytest.fixture(scope="module")
def dataset(provider: LocalProvider) -> Dataset:
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(rng.choice(pico.WORDS, rng.integers(3, 12))) for _ in range(60))
    labels = provider.logits(texts, provider.cookbook.read("angry@0.5")).argmax(axis=1)
    return Dataset("own", texts, labels, np.arange(len(texts)))


def test_without_a_step_the_attack_is_the_plain_pass_and_with_one_the_loss_rises(
    provider: LocalProvider, dataset: Dataset
) -> None:
    recipe = provider.cookbook.read("angry@0.3")
    plain = provider.logits(dataset.texts, recipe)
    np.testing.assert_allclose(FastGradient(provider, 0.0)(dataset.texts, dataset.truth, recipe), plain, atol=1e-4)

    def losses(logits: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(logits)
        return torch.nn.functional.cross_entropy(z, torch.from_numpy(dataset.truth), reduction="none").numpy()

    small = losses(FastGradient(provider, 0.005)(dataset.texts, dataset.truth, recipe)) - losses(plain)
    assert (small > -1e-5).mean() > 0.95 and small.mean() > 0
    parameters = provider.bank.bind(provider.vector(recipe)).parameters()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters)


def test_flips_are_counted_against_the_plain_answers_and_texts_that_stay_do_not_flip(
    provider: LocalProvider, dataset: Dataset
) -> None:
    line = Line.read("angry", provider.cookbook)
    found = robustness(
        line, dataset, (0.0, 0.5), LogitCache(provider, MemoryLogitStore()), attack=FastGradient(provider)
    )
    assert set(found) == {*PERTURBATIONS, ATTACK}
    assert all([at.t for at in along] == [0.0, 0.5] for along in found.values())
    middle = found["dropped word"][1]
    changed = [perturbed(text, "dropped word", 0) for text in dataset.texts]
    now = provider.logits(changed, line.at(0.5)).argmax(axis=1)
    assert middle.flips.value == pytest.approx((now != dataset.truth).mean())
    assert middle.accuracy.value == pytest.approx((now == dataset.truth).mean())
    assert middle.flips.low <= middle.flips.value <= middle.flips.high
    # The tokenizer knows no capitals, so neither do the answers.
    assert all(at.flips.value == 0 for at in found["casing"])
