"""What texts get all along a line, from five passes: for pages that show t as a slider."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, Field, field_validator, model_validator

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only
from app.api.dependencies import TheEngine
from app.api.schemas import REFUSALS, TextsRequest, TimingsReply
from app.sweep.logits.logit_curve import NODES
from app.sweep.logits.spectrum import Spectrum, along, between

MOST_TS = 1_001


class SpectrumRequest(TextsRequest):
    variant: str | None = Field(
        None, description="from the base to this variant; may be left out where there is one", examples=["finance"]
    )
    recipe: str | None = Field(
        None,
        description="a line with two ends instead: `airline..finance`, or from the base to any recipe",
        examples=["reviews..finance"],
    )
    steps: int | None = Field(None, ge=2, le=MOST_TS, description="so many t's from 0 to 1, evenly spaced (21)")
    ts: list[float] | None = Field(
        None,
        min_length=1,
        max_length=MOST_TS,
        fail_fast=True,
        description="these t's instead, from 0 to 1",
        examples=[[0, 0.4, 1]],
    )
    function: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="what turns logits into scores; by default what the bank was trained for"
    )
    check: bool = Field(False, description="also run a blend between the nodes, and tell how far the curve misses it")

    @field_validator("ts")
    @classmethod
    def _stay_between_the_nodes(cls, ts: list[float] | None) -> list[float] | None:
        for t in ts or ():
            if not 0 <= t <= 1:
                raise ValueError(f"t = {t:g} is not between 0 and 1; beyond the blends that are run nothing is known")
        return ts

    @model_validator(mode="after")
    def _take_steps_or_ts(self) -> SpectrumRequest:
        if self.steps is not None and self.ts is not None:
            raise ValueError("give either 'steps' or 'ts', not both")
        return self

    def all_ts(self) -> list[float]:
        """The t's asked for."""
        if self.ts is not None:
            return self.ts
        last = (self.steps or 21) - 1
        return [step / last for step in range(last + 1)]


class TextSpectrum(BaseModel):
    probabilities: dict[str, list[float]] = Field(description="by label, the score at each of `ts`")
    logits: dict[str, list[float]] = Field(description="by label, the logit at each of `nodes`")
    tokens: int
    truncated: bool


class CheckReply(BaseModel):
    """How far the curve is from a blend that was run: the mean and the largest difference of a logit, and the share of
    texts that get another label."""

    t: float
    mean: float
    largest: float
    labels: float


class SpectrumReply(BaseModel):
    line: str = Field(description="its two ends, t = 0 and t = 1", examples=["base..finance"])
    ts: list[float]
    nodes: list[float] = Field(
        description="the t's of the blends that were run; between them each text's logits are the polynomial through "
        "them (Lagrange's), and never beyond"
    )
    recipes: list[str] = Field(description="the blend at each node")
    texts: list[TextSpectrum]
    check: CheckReply | None = Field(description="null unless asked for")
    timings: TimingsReply


router = APIRouter(
    route_class=BoundedRoute, prefix="/v1", tags=["predict"], dependencies=[Depends(json_only)], responses=REFUSALS
)

EXAMPLES: dict[str, Any] = {
    "to a variant": {"value": {"texts": "Sales fell by 8 percent.", "variant": "finance"}},
    "between variants, at some t's": {
        "value": {"texts": ["Works again, thanks."], "recipe": "reviews..service", "ts": [0, 0.25, 0.5, 0.75, 1]}
    },
}


@router.post("/spectrum")
@needs("predict", only_computes=True)
async def spectrum(
    engine: TheEngine, body: Annotated[SpectrumRequest, Body(openapi_examples=EXAMPLES)]
) -> SpectrumReply:
    """Classify texts at every t of a line, by five true blends and the curve through each text's logits."""
    ts = body.all_ts()
    line = between(engine, body.variant, body.recipe)
    found = await along(engine, line, body.as_list(), ts, body.function, body.check)
    return _reply(found, engine.bank.labels, ts)


def _reply(found: Spectrum, labels: list[str], ts: list[float]) -> SpectrumReply:
    texts = [
        TextSpectrum(
            probabilities=dict(zip(labels, scores, strict=True)),
            logits={label: found.logits[:, index, c].tolist() for c, label in enumerate(labels)},
            tokens=found.answer.predictions[index].tokens,
            truncated=found.answer.predictions[index].truncated,
        )
        for index, scores in enumerate(found.scores)
    ]
    return SpectrumReply(
        line=found.line.text,
        ts=ts,
        nodes=list(NODES),
        recipes=[found.line.at(t).text for t in NODES],
        texts=texts,
        check=CheckReply.model_validate(found.check, from_attributes=True) if found.check else None,
        timings=TimingsReply.model_validate(found.answer.timings, from_attributes=True),
    )
