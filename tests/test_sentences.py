"""Every sentence that a sweep's report can say, each made from data; `CASES` has a way to each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from synthetic import LINE, Synthetic, drawn
from test_sweep import ask

from app.sweep.data.dataset import Dataset
from app.sweep.logits.logit_cache import LogitCache, MemoryLogitStore
from app.sweep.report.summary import SENTENCES, WARNINGS, SweepSentence, said
from app.sweep.run import run_sweep
from app.sweep.sweep_result import SweepResult
from app.sweep.sweep_spec import BankFacts, Guard, SweepSpec
from app.weights.recipe import Recipe


class Layered(Synthetic):
    """Where t runs over the layers, `by` of the difference is added to the logit of the last label."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def logits(self, texts: tuple[str, ...], recipe: Recipe) -> np.ndarray:
        first = recipe.t_by_variant.get("finance", 0.0)
        ends = first if isinstance(first, tuple) else (first, first)
        made = self.of(texts, sum(ends) / 2)
        made[:, -1] += self.by * (ends[1] - ends[0])
        return made.astype(np.float32)


P = Synthetic()


def own(texts: int, t: float, seed: int = 1, temperature: float = 1.0, provider: Synthetic = P) -> Dataset:
    return drawn(provider, texts, t, temperature, seed)


def general(texts: int, t: float = 0.0, seed: int = 2) -> Dataset:
    return drawn(P, texts, t, 1.0, seed, name="general")


def at_random(texts: int, share: float = 1 / 3) -> Dataset:
    """Labels that no text has to do with; `share` of them are the last one."""
    rest = (1 - share) / 2
    labels = np.random.default_rng(3).choice(3, texts, p=[rest, rest, share])
    return replace(own(texts, 0.5), labels=labels.astype(np.int64))


def asked(**spec: object) -> Callable[[], SweepResult]:
    return lambda: ask(P, **{"repeats": 1, **spec})


def bank_of(provider: Synthetic) -> BankFacts:
    return BankFacts(list(provider.labels), ["finance"], [[4.0]])


def perturbed() -> SweepResult:
    spec = SweepSpec(LINE, [own(60, 0.6)], [1.0], 4.0, repeats=1, robustness=True)
    return run_sweep(spec, bank_of(P), LogitCache(P, MemoryLogitStore()))


def ramped(provider: Synthetic, guards: tuple[Guard, ...] = (), t: float = 0.5) -> Callable[[], SweepResult]:
    def sweep() -> SweepResult:
        target = drawn(Synthetic(), 200, t, 1.0, 1)
        if isinstance(provider, Layered) and provider.by:
            # labels of a ramp from 0 to 1
            logits = provider.logits(target.texts, LINE.ramp(0.0, 1.0)).astype(np.float64)
            labels = (logits + np.random.default_rng(4).gumbel(size=logits.shape)).argmax(axis=1)
            target = replace(target, labels=labels)
        spec = SweepSpec(LINE, [target], [1.0], 4.0, guards, ramp=True, draws=400, repeats=1)
        return run_sweep(spec, bank_of(provider), LogitCache(provider, MemoryLogitStore()))

    return sweep


CASES: Mapping[str, tuple[Callable[[], SweepResult], str]] = {
    "serve a ramp": (ramped(Layered(2.0)), " in the last: the log loss is better by"),
    "serve the best": (asked(targets=[own(300, 0.6)]), ": the best log loss along base..finance."),
    "serve the least penalised": (asked(targets=[own(300, 0.6)], penalty=0.02), ": the least log loss + 0.08 t^2."),
    "serve the nearest": (asked(targets=[own(300, 0.6)], rule="nearest"), "within one standard error of the best (t ="),
    "a guard is kept": (
        asked(targets=[own(300, 0.9)], guards=[Guard(general(400), "accuracy", 0.02)]),
        "It keeps accuracy on general within 2 points of base (90 % sure, from 400 texts).",
    ),
    "a guard needs more texts": (
        asked(targets=[own(300, 0.9)], guards=[Guard(general(60), "accuracy", 0.01)]),
        "no t above 0 can be promised to keep accuracy there within 1 point (90 % sure); about ",
    ),
    "a guard refuses": (
        asked(targets=[own(300, 0.9)], guards=[Guard(general(400), "loss", 0.0)], grid=[0.5]),
        "no t above 0 can be promised to keep log loss there within 0 (90 % sure), and on these no better t loses",
    ),
    "expect": (asked(targets=[own(300, 0.6)], objective="macro_f1"), "Expect on new texts: macro-F1 "),
    "no better than label frequencies": (
        asked(targets=[at_random(300)]),
        "Label frequencies alone, without a look at the text, do no worse: log loss 1.",
    ),
    "against the start": (asked(targets=[own(300, 0.6)]), "Against base: log loss -0."),
    "against the end": (asked(targets=[own(300, 0.6)]), "Against finance: log loss -0."),
    "the best t lies between": (asked(targets=[own(300, 0.6)]), "The best t lies between 0."),
    "the best t is an end": (
        asked(targets=[own(2000, 1.3)]),
        "The best t is 1, an end of the line: nothing between is better (95 %).",
    ),
    "t's not shown to be worse": (
        asked(targets=[own(400, 0.6)], objective="accuracy"),
        "The t's whose accuracy is not shown to be worse lie between 0.",
    ),
    "no t shown to be worse": (
        asked(targets=[at_random(60)], objective="accuracy"),
        "These texts show neither end of the line to have a worse accuracy (95 %).",
    ),
    "all other t's shown to be worse": (
        asked(targets=[own(2000, 1.0)], objective="accuracy", grid=[0.5]),
        "Every other t is shown to have a worse accuracy (95 %).",
    ),
    "a smaller t is as good": (asked(targets=[own(300, 0.6)]), " is within one standard error of it."),
    "no ramp is better": (ramped(Layered(0.0)), "No t that runs over the layers is clearly better: with the best one"),
    "few texts": (asked(targets=[own(60, 0.5)]), "60 labelled texts are few: the best t may be anywhere from "),
    "t's hardly told apart": (
        asked(targets=[at_random(300)], objective="accuracy"),
        "these texts hardly tell t's apart: the best may be anywhere from ",
    ),
    "few groups": (
        asked(targets=[replace(own(300, 0.5), groups=np.arange(300) // 30)]),
        "10 groups are few to resample; take every interval as too narrow",
    ),
    "hardly better than label frequencies": (
        asked(targets=[own(60, 0.5, temperature=8.0, seed=5)]),
        "it is not shown to be better than the label frequencies alone, whose log loss is 1.",
    ),
    "no more accurate than the majority": (
        asked(targets=[at_random(300, share=0.8)]),
        "answering every text with the commonest label is right as often or more often: in ",
    ),
    "a guard promises less": (
        asked(targets=[own(300, 0.9)], guards=[Guard(general(400, t=0.3), "accuracy", 0.03)]),
        "400 texts of general promise no t above 0.",
    ),
    "more blends were run": (
        lambda: ask(Synthetic(degree=9), targets=[own(300, 0.5, provider=Synthetic(degree=9))], repeats=1),
        "a polynomial through the blends that were run missed the logits at t = 0.35 by ",
    ),
    "temperature at the end of its range": (
        asked(targets=[at_random(3000)]),
        ": its temperature is at the end of the range (20.00)",
    ),
    "texts occur again": (
        asked(targets=[replace(own(300, 0.5), repeated=7)]),
        "own: 7 texts occur more than once; these are resampled and held out together",
    ),
    "no ramp was looked for": (
        ramped(Synthetic(bend=0.5)),
        "logits change too unevenly along the line to look beside it, so no ramp was looked for",
    ),
    "no ramp is allowed": (
        ramped(Layered(0.0), (Guard(general(60), "loss", 0.0),)),
        "the guards allow none of the ramps that were run",
    ),
    "figures are of one t": (ramped(Layered(2.0)), "what is told of scores, guards and robustness is of t = "),
    "texts were not attacked": (perturbed, "texts were perturbed but not attacked: an attack needs gradients, which"),
}

made = cache(lambda name: CASES[name][0]())


def test_every_sentence_has_a_name_of_its_own_and_a_case() -> None:
    assert [sentence.name for sentence in (*SENTENCES, *WARNINGS)] == list(CASES)


@pytest.mark.parametrize("sentence", [*SENTENCES, *WARNINGS], ids=lambda sentence: sentence.name)
def test_a_sentence_is_said_where_its_fact_is_found(sentence: SweepSentence) -> None:
    found, words = made(sentence.name), CASES[sentence.name][1]
    assert any(words in text for text in said([sentence], found)), (found.sentence, found.warnings)
    told = found.sentence if sentence in SENTENCES else " ".join(found.warnings)
    assert words in told and not re.search(r"\b(None|nan|inf)\b", told)


ONE_OF = (
    ("serve a ramp", "serve the best", "serve the least penalised", "serve the nearest"),
    ("a guard is kept", "a guard needs more texts", "a guard refuses"),
    ("the best t lies between", "the best t is an end", "t's not shown to be worse", "no t shown to be worse"),
    ("no better than label frequencies", "hardly better than label frequencies"),
)


@pytest.mark.parametrize("names", ONE_OF, ids=lambda names: names[0])
def test_sentences_that_exclude_each_other_are_not_said_together(names: tuple[str, ...]) -> None:
    apart = [sentence for sentence in (*SENTENCES, *WARNINGS) if sentence.name in names]
    for case in CASES:
        assert len([s for s in apart if said([s], made(case))]) <= 1, case
