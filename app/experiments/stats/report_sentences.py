"""Every sentence that a report can say, with the fact that it needs.

`report_summary.py` decides which fact holds and fills in the figures; no sentence is written anywhere else. Parts that
are joined to one sentence by `;` or `,` stand here as parts.
"""

from __future__ import annotations

from typing import NamedTuple


class Sentence(NamedTuple):
    needs: str
    """The fact that makes it true."""
    text: str


SENTENCES: dict[str, Sentence] = {
    # -- the whole report
    "no units": Sentence("no unit is counted", "No units yet."),
    "mismatch": Sentence(
        "the evidence against the configured split is above 100",
        "Sample-ratio mismatch: do not trust this experiment; its units ({counts}) are not split as configured.",
    ),
    "nothing decides": Sentence(
        "all metrics are guardrails, or there is none", "No metric decides: name one as primary."
    ),
    # -- a metric
    "no outcomes": Sentence(
        "no unit's value differs from another's, or an arm has none", "Cannot tell yet: {metric} has too few outcomes."
    ),
    "better": Sentence(
        "the interval that decides lies wholly on the better side of 0",
        "{arm} beats {control} by {range} of {metric}{shown}",
    ),
    "worse": Sentence(
        "the interval that decides lies wholly on the worse side of 0",
        "{arm} is worse than {control} by {range} of {metric}{shown}",
    ),
    "shown before": Sentence("an earlier look crossed, and this one would not", ", as was shown on {day}"),
    "undecided": Sentence(
        "an arm is not told from control, and the plan is not complete", "cannot tell yet: {unclear}{wait}"
    ),
    "over": Sentence(
        "an arm is not told from control, and the plan is complete",
        "no difference was shown at the planned end: {unclear}",
    ),
    "few units": Sentence("one of the two has fewer than 100 units", "{arm} or {control} has fewer than {least} units"),
    "few outcomes": Sentence(
        "both together have fewer than 10 units with, or without, a binary outcome",
        "{arm} and {control} have too few outcomes of {metric}",
    ),
    "not after Holm": Sentence(
        "the metric's own interval leaves out 0, and its p after Holm is above 0.05",
        "{arm} differs from {control} in {metric}, but not beyond doubt among so many comparisons",
    ),
    "between": Sentence(
        "the interval holds 0", "{arm} has between {less} less and {more} more {metric} than {control}"
    ),
    "days to go": Sentence("a plan, and a pace over full days", "; about {days} to go"),
    # -- guardrails
    "guardrail": Sentence("the verdict on each arm", "Guardrail {metric} {verdicts}."),
    "guardrail worse": Sentence("harm beyond the margin is shown", "fails for {arm}"),
    "guardrail harmless": Sentence("harm beyond the margin is ruled out", "holds for {arm}"),
    "guardrail undecided": Sentence("the interval holds the margin", "cannot be told yet for {arm}"),
    "guardrail too few units": Sentence("fewer than 100 units of the arm or of control", "has too few units of {arm}"),
    "guardrail too few outcomes": Sentence(
        "fewer than 10 units with, or without, a binary outcome", "has too few outcomes of {arm}"
    ),
    "failure": Sentence(
        "harm is shown", "Guardrail {metric} fails: {arm} is worse than {control} by {range}{beyond}{shown}."
    ),
    "beyond": Sentence("the guardrail has a margin", ", beyond the margin of {margin}"),
    # -- bandits
    "warming up": Sentence(
        "an arm has fewer than 100 units whose window has closed",
        "Warming up: shares stay as they are until every arm has enough units whose window has closed.",
    ),
    "best arm": Sentence(
        "draws of the arms' effects", "{arm} is the best arm for {metric} with a probability of {chance} %."
    ),
    "left out": Sentence(
        "the arm's guardrail failed in the present era",
        "{arm} gets no new units since its guardrail failed; units that drew it keep it until the "
        "experiment is paused, "
        "or another salt, recipe or list of arms draws everybody anew",
    ),
    # -- a dose
    "dose top": Sentence(
        "a quadratic falls on both sides of its top", "The best t is {best}, {between}, for a single look{misfit}."
    ),
    "dose end": Sentence(
        "a quadratic is highest at an end of the t's that were tried",
        "The best t that was tried is the end {end}; it lies {between}, for a single look{misfit}.",
    ),
    "dose flat": Sentence(
        "the t's are not told apart (Wald p > 0.05)",
        "No dependence on t is shown; the best one may lie {between}, for a single look{misfit}.",
    ),
    "dose flat from": Sentence(
        "a line that is flat above a bend is nearer to the arms than a quadratic",
        "Flat from about t = {best} on ({between}, for a single look): smaller t's are worse, and "
        "no larger one is shown to "
        "be better.",
    ),
    "dose flat up to": Sentence(
        "a line that is flat below a bend is nearer to the arms than a quadratic",
        "Flat up to about t = {best} ({between}, for a single look): larger t's are worse, and no "
        "smaller one is shown to "
        "be better.",
    ),
    "dose between": Sentence("the interval of the best t, or of the bend", "between {low} and {high} (95 %)"),
    "dose misfit": Sentence("arms lie off the quadratic (p < 0.05)", "; a quadratic does not fit these arms"),
    # -- warnings
    "twyman": Sentence(
        "an arm is better, by more than 5 % of control",
        "{arm} changes {metric} by {relative} %: gains above {least} % are more often mistakes "
        "than discoveries, so check "
        "exposures, double posts and outcomes by day first",
    ),
    "amended": Sentence(
        "the plan, or what decides, was changed after the start",
        "since {day} the confidence sequence decides, because the plan was changed while the "
        "experiment ran ({changes})",
    ),
    "ended": Sentence(
        "a look found the plan complete", "{metric} says what it said when the plan was complete, on {day}{open}"
    ),
    "windows open": Sentence(
        "windows were open at that look",
        "; the windows of {units} units were open then, and once they have closed it is looked at one last time",
    ),
    "overrun": Sentence(
        "more than 2 % more units than planned",
        "{units} units are more than the {planned} that were planned: looks after the planned end "
        "are not paid for, so the "
        "deciding metric keeps what it said then; stop the experiment",
    ),
    "strata": Sentence(
        "more than one phase has units",
        "{phases} phases with other shares or salts are put together as strata; each is shown apart too",
    ),
    "no covariate": Sentence(
        "a covariate is used, and more than a fifth of the units have none",
        "{part} % of the units have no covariate, so it removes less variance than it could",
    ),
    "uncounted": Sentence("outcomes count nowhere", "{outcomes} nowhere: {parts}; see docs/ledger.md"),
}


def say(key: str, **figures: object) -> str:
    """The sentence with its figures."""
    return SENTENCES[key].text.format(**figures)
