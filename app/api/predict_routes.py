"""POST /v1/predict: texts and a recipe in, predictions out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.routing import Route

from app.api.auth.roles import needs
from app.api.bounded_json import BoundedRoute, json_only, read_json, write_json
from app.api.dependencies import UNIT_HEADER, ThePredictor, UnitHeader, loading
from app.api.http_server.header_text import header_text
from app.api.schemas import REFUSALS, Each, RecipeField, TextsRequest, TimingsReply
from app.predictor import Inference


class PredictRequest(TextsRequest):
    recipe: RecipeField | Each[RecipeField] | None = Field(
        None,
        description="what to blend; a list has a recipe for every text, and all run in one batch. By default "
        "`@prod` if there is such an alias, else what is configured",
    )
    segment: str | Each[str | None] | None = Field(
        None,
        description="where the texts come from (one name, or one for every text), for `auto` and recipes such as "
        "`finance@auto`; other recipes take no notice of it",
        examples=["mail"],
    )
    top_k: int | None = Field(None, ge=1, description="only the k most probable labels in `probabilities`")
    function: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="what turns logits into scores; by default what the bank was trained for"
    )
    cache: bool = Field(True, description="false: run the texts anew, look up and remember nothing")
    unit: str | Each[str | None] | None = Field(
        None,
        description="whom an experiment treats alike: the customer or conversation; a list has one for every text. "
        f"By default the header `{UNIT_HEADER}`; without any, an experiment answers with its control",
        examples=["customer-1"],
    )
    attributes: dict[str, str] = Field(
        default_factory=dict, max_length=32, fail_fast=True, description="what an experiment's targeting looks at"
    )


class PredictionReply(BaseModel):
    label: str = Field(description="the label with the highest score", examples=["positive"])
    probability: float = Field(description="its score", examples=[0.93])
    probabilities: dict[str, float] = Field(
        description="score by label, highest first",
        examples=[{"positive": 0.93, "neutral": 0.05, "negative": 0.02}],
    )
    t: dict[str, float | tuple[float, float]] = Field(
        description="t of each variant that took part; where it runs over the layers, that of the first and the last",
        examples=[{"finance": 0.4}],
    )
    tokens: int = Field(description="tokens read, special tokens included", examples=[9])
    truncated: bool = Field(description="the text was longer than what is read of one; the rest was ignored")
    chosen_by: Literal["segment", "router", "pooled"] | None = Field(
        None, description="what chose t, where `auto` asked for one; `pooled`: nothing is known of the segment"
    )
    segment: str | None = Field(None, description="the segment whose t was taken, or the likeliest, with `auto`")
    recipe: str | None = Field(
        None, exclude_if=lambda value: value is None, description="the recipe that answered it, where `auto` chose one"
    )
    key: str | None = Field(None, exclude_if=lambda value: value is None, description="the name of that blend")
    cached: bool = Field(description="remembered: the same input was run on this blend before")


class ArmReply(BaseModel):
    name: str = Field(description="the experiment")
    arm: str = Field(description="the arm that answered")


class PredictReply(BaseModel):
    predictions: list[PredictionReply]
    recipe: str | list[str] = Field(
        description="the recipe in its canonical text, of an alias what it points at: one text where one recipe was "
        "sent (`finance@auto` stays that, and each prediction has its own `recipe`); where recipes or units came as a "
        "list, what answered each text",
        examples=["finance@0.4"],
    )
    key: str | list[str] | None = Field(
        description="the blend's name in every cache; null for one `finance@auto`, where each prediction has its own",
        examples=["3b1f0c5e9a7d4e21b6c8d0f2a4e6c8b0"],
    )
    source: Literal["memory", "redis", "built", "mixed"] = Field(
        description="where the weights came from; `mixed`: from the members row by row, or from several sources. "
        "Where every prediction was remembered, no weights were needed, and it says where the predictions were"
    )
    experiment: ArmReply | list[ArmReply | None] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="where the recipe is an experiment (a list, if recipes or units came as one)",
    )
    timings: TimingsReply


router = APIRouter(route_class=BoundedRoute, prefix="/v1", dependencies=[Depends(json_only)], responses=REFUSALS)

PREDICT_EXAMPLES: dict[str, Any] = {
    "one text": {"value": {"texts": "The refund came within a day.", "recipe": "service@0.4"}},
    "several texts": {
        "value": {
            "texts": ["Net loss narrowed to 2 million from 9 million.", "The board meets on Tuesday."],
            "recipe": {"variant": "finance", "t": 0.4},
        }
    },
    "two variants": {"value": {"texts": ["It does what the box says."], "recipe": "reviews@0.5+service@0.2"}},
    "a recipe for every text": {
        "value": {
            "texts": ["Sales fell by 8 percent.", "Works again, thanks."],
            "recipe": ["finance@0.6", "service@0.3"],
        }
    },
    "a t by segment": {"value": {"texts": ["Works again, thanks."], "recipe": "service@auto", "segment": "mail"}},
    "a variant and a t by segment": {"value": {"texts": ["Works again, thanks."], "recipe": "auto", "segment": "mail"}},
    "between variants": {"value": {"texts": ["Works again, thanks."], "recipe": "reviews..service@0.5"}},
}


@router.post("/predict", tags=["predict"])
@needs("predict", only_computes=True)
async def predict(
    predictor: ThePredictor,
    body: Annotated[PredictRequest, Body(openapi_examples=PREDICT_EXAMPLES)],
    unit: UnitHeader = None,
) -> PredictReply:
    """Classify texts with the weights that the recipe names."""
    units = header_text(UNIT_HEADER, unit) if body.unit is None and unit is not None else body.unit
    found = await predictor.predict(
        body.as_list(),
        body.recipe,
        unit=units,
        segment=body.segment,
        attributes=body.attributes,
        function=body.function,
        cache=body.cache,
    )
    return _reply(found, body.top_k)


@needs("predict", only_computes=True)
async def predict_plainly(request: Request) -> Response:
    """`predict` without FastAPI's dependencies and its validation of replies, which take longer than the lookup of a
    remembered prediction."""
    predictor = request.app.state.predictor or loading()
    body = await read_json(request, PredictRequest)
    return write_json(await predict(predictor, body, request.headers.get(UNIT_HEADER)))


# First, so that it answers; the route above is what the specification shows.
router.routes.insert(0, Route("/v1/predict", predict_plainly, methods=["POST"]))


def _reply(found: Inference, top_k: int | None) -> PredictReply:
    answer, choices, many = found.answer, found.choices, found.many
    predictions = []
    for index, prediction in enumerate(answer.predictions):
        ranked = sorted(zip(found.labels, prediction.scores, strict=True), key=lambda pair: -pair[1])
        label, probability = ranked[0]
        choice = choices[index] if choices else None
        chosen = choice is not None and choice.by is not None
        predictions.append(
            PredictionReply(
                label=label,
                probability=probability,
                probabilities=dict(ranked[:top_k]),
                t=prediction.recipe.t_by_variant,
                tokens=prediction.tokens,
                truncated=prediction.truncated,
                chosen_by=choice.by if choice else None,
                segment=choice.segment if choice else None,
                recipe=prediction.recipe.text if chosen else None,
                key=answer.keys[index] if chosen else None,
                cached=prediction.cached,
            )
        )
    recipes = [prediction.recipe.text for prediction in answer.predictions]
    arms = [ArmReply(name=arm.experiment, arm=arm.arm) if arm else None for arm in found.arms or ()]
    return PredictReply(
        predictions=predictions,
        recipe=recipes if many else found.automatic or recipes[0],
        key=answer.keys if many else None if found.automatic else answer.keys[0],
        source=answer.source,  # type: ignore[arg-type]  # a tier's name; pydantic checks it
        experiment=(arms if many else arms[0]) if arms else None,
        timings=TimingsReply.model_validate(answer.timings, from_attributes=True),
    )
