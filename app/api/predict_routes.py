"""The service's own HTTP contract, version 1."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from app.api.auth.roles import needs
from app.api.bounded_json import MOST_ENTRIES, BoundedRoute
from app.api.direct import Handler, json_only, read_json, write_json
from app.api.health_routes import TheEngine, engine_of
from app.api.http_server.header_text import header_text
from app.api.meetings import UNIT_HEADER, Met, TheExperiments, UnitHeader, answer, experiments_of, meet
from app.api.problems import Problem
from app.errors import BadTexts
from app.names import nfc
from app.segments.segment_selector import SegmentChoice
from app.serving.blend_provider import Cached
from app.serving.engine import Answer
from app.weights.auto_recipe import Auto
from app.weights.recipe import Recipe

NameField = Annotated[str, AfterValidator(nfc)]
"""A name as it is compared and kept."""
RecipeField = Annotated[
    str | dict[str, Any],
    Field(
        description='what to blend, as text (`finance@0.4`), object (`{"variant": "finance", "t": 0.4}`) or alias '
        "(`@prod`); in `predict` also an experiment (`exp:tone`)",
        examples=["finance@0.4", "@prod", {"t": {"finance": 0.3, "reviews": 0.2}}],
    ),
]


Entry = TypeVar("Entry")
Each = Annotated[list[Entry], Field(max_length=MOST_ENTRIES, fail_fast=True)]
"""An entry for every text. More than one complaint about such a list would cost far more than the list."""


class TextsRequest(BaseModel):
    """What every call that classifies takes."""

    model_config = ConfigDict(extra="forbid")

    texts: str | Each[str | tuple[str, str]] = Field(
        description="a text, a list of texts, or a list of [text, pair]",
        examples=[["The refund came within a day.", "Third call and still no answer."]],
    )

    @field_validator("texts", mode="wrap")
    @classmethod
    def _say_what_texts_are(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            raise ValueError(f"texts has {len(value)} entries; at most {MOST_ENTRIES} are taken")
        try:
            return handler(value)
        except ValidationError as error:
            index = next((part for e in error.errors() for part in e["loc"] if isinstance(part, int)), None)
            what = f"item {index} is neither" if index is not None else "this is neither"
            raise ValueError(f"texts is a text, a list of texts, or a list of [text, pair]; {what}") from None

    def as_list(self) -> list[str | tuple[str, str]]:
        return [self.texts] if isinstance(self.texts, str) else list(self.texts)


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

    def segments(self) -> list[str | None]:
        """A segment for every text; raises `BadTexts` for a list of another length."""
        texts = len(self.as_list())
        if not isinstance(self.segment, list):
            return [self.segment] * texts
        if len(self.segment) != texts:
            raise BadTexts(f"{texts} texts and {len(self.segment)} segments; a list of segments has one for every text")
        return self.segment


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


class TimingsReply(BaseModel):
    """Milliseconds."""

    queue: float
    blend: float
    tokenize: float
    forward: float
    total: float


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


class VariantReply(BaseModel):
    name: str
    source: str
    delta_norm: float = Field(description="Euclidean length of variant - base")
    angles: dict[str, float] = Field(description="angle to the other variants' deltas, degrees")
    warnings: list[str] = Field(description="what is doubtful about it, a sentence each")


class BankReply(BaseModel):
    base: str = Field(description="where the base came from")
    variants: list[VariantReply]
    labels: list[str]
    architecture: str
    problem_type: str
    parameters: int
    dtype: str
    device: str
    members: bool = Field(description="whether this pod holds the members, or only serves blends that lie in Redis")
    bytes: int = Field(description="size of the arena that holds all members")
    max_tokens: int = Field(description="tokens read of one text at most")
    fingerprint: str = Field(description="SHA-256 over weights, labels, tokenizer and configuration")


class BlendRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipe: RecipeField


class BlendReply(BaseModel):
    key: str
    recipe: str
    source: Literal["memory", "redis", "built"]
    milliseconds: float = Field(description="what fetching or building it took")
    bytes: int
    tiers: list[str] = Field(description="where it lies now: `memory`, and `redis` if it took the blend")


class CachedReply(BaseModel):
    key: str
    recipe: str
    bytes: int
    tiers: list[str]
    hits: int = Field(description="times this process found it in memory")
    age: float = Field(description="seconds since it was built")
    in_use: int = Field(description="requests that use it now")
    costs: dict[str, float] = Field(
        description="milliseconds that each way took where this process went it: `build`, `fetch`, `write`",
        examples=[{"build": 7.1, "write": 160.3}],
    )


class CachedList(BaseModel):
    blends: list[CachedReply]
    tiers: dict[str, dict[str, int]] = Field(description="counters of this process, by tier")


class DeletedBlendReply(BaseModel):
    key: str
    tiers: list[str] = Field(description="the tiers that held it")


LAST_VERSION = 2**53 - 1
"""Of whatever has versions: the largest whole number that every reader of JSON holds."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "model": Problem}
    for status, description in {
        400: "the body is not JSON",
        401: "a key is needed, where the service has keys",
        403: "the key may not do this",
        404: "no such variant, alias or blend, or none that this pod can have",
        413: "the body is too large",
        415: "the body does not say that it is JSON",
        422: "texts or recipe cannot be read",
        429: "too many texts are waiting; see Retry-After",
        503: "the bank is still being loaded",
        504: "the deadline in X-Request-Timeout has passed",
        507: "a text does not fit into the memory that is free",
    }.items()
}

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
    engine: TheEngine,
    experiments: TheExperiments,
    body: Annotated[PredictRequest, Body(openapi_examples=PREDICT_EXAMPLES)],
    unit: UnitHeader = None,
) -> PredictReply:
    """Classify texts with the weights that the recipe names."""
    given, texts = body.recipe, body.as_list()
    many, each = isinstance(given, list), given if isinstance(given, list) else [given]
    engine.check_lengths(len(texts), len(each) if many else None)
    units = header_text(UNIT_HEADER, unit) if body.unit is None and unit is not None else body.unit
    met = await meet(experiments, each, units, body.attributes, len(texts))
    if met is None:
        wanted, arms = [engine.wanted(one) for one in each], None
        recipes = [one for one in wanted if isinstance(one, Recipe)]
        if len(recipes) == len(wanted):
            shown = await engine.predict(texts, recipes if many else recipes[0], body.function, body.cache)
            return _reply(shown, engine.bank.labels, body.top_k, many)
        wanted = wanted if many else wanted * len(texts)
        shown, choices = await engine.predict_adaptively(texts, wanted, body.segments(), body.function, body.cache)
    else:
        wanted = met.wanted(engine, each if many else each * len(texts))
        shown, choices = await answer(
            experiments, engine, texts, wanted, body.segments(), met, body.function, body.cache
        )
        many = many or met.many
        arms = _arms(met, many)
    automatic = wanted[0].text if not many and isinstance(wanted[0], Auto) else None
    return _reply(shown, engine.bank.labels, body.top_k, many, arms, choices, automatic)


async def predict_directly(request: Request) -> Response:
    """`predict` without the framework between."""
    engine, experiments = await engine_of(request), await experiments_of(request)
    body = await read_json(request, PredictRequest)
    return write_json(await predict(engine, experiments, body, request.headers.get(UNIT_HEADER)))


DIRECT: dict[tuple[str, str], Handler] = {("POST", "/v1/predict"): predict_directly}


@router.get("/bank", tags=["bank"])
@needs("predict")
async def bank(engine: TheEngine) -> BankReply:
    """What is loaded: base, variants, labels, and how far the variants lie from the base and each other."""
    bank = engine.bank
    arena = bank.arena
    variants = [
        VariantReply(
            name=name,
            source=bank.sources[name],
            delta_norm=bank.delta_norms[i],
            angles={other: bank.delta_angles[i][j] for j, other in enumerate(bank.variants) if j != i},
            warnings=bank.warnings.get(name, []),
        )
        for i, name in enumerate(bank.variants)
    ]
    return BankReply(
        base=bank.sources["base"],
        variants=variants,
        labels=bank.labels,
        architecture=bank.architecture,
        problem_type=bank.problem_type,
        parameters=arena.layout.parameters,
        dtype=str(arena.rows.dtype).removeprefix("torch."),
        device=str(bank.device),
        members=bank.has_members,
        bytes=arena.row_bytes * len(arena.rows),
        max_tokens=engine.max_tokens,
        fingerprint=bank.fingerprint,
    )


@router.post("/blends", tags=["blends"], responses={201: {"description": "built now", "model": BlendReply}})
@needs("manage")
async def build_blend(engine: TheEngine, body: BlendRequest, response: Response) -> BlendReply:
    """Build or fetch a blend now, so that the first request finds it, and put it into Redis, where pods without the
    members find it. 201 if it was built, 200 if it was there."""
    recipe = engine.cookbook.read(body.recipe)
    async with engine.blends.publish(recipe) as weights:
        response.status_code = 201 if weights.source == "built" else 200
        return BlendReply(
            key=weights.key,
            recipe=recipe.blend.text,
            source=weights.source,  # type: ignore[arg-type]  # a tier's name; pydantic checks it
            milliseconds=weights.milliseconds,
            bytes=engine.bank.arena.row_bytes,
            tiers=await engine.blends.tiers(weights.key) or ["memory"],
        )


@router.get("/blends", tags=["blends"])
@needs("predict")
async def list_blends(engine: TheEngine) -> CachedList:
    """Every blend that lies in a tier."""
    cached = await engine.blends.cached()
    return CachedList(blends=[_cached(blend) for blend in cached], tiers=engine.blends.counters())


@router.get("/blends/{key}", tags=["blends"])
@needs("predict")
async def get_blend(engine: TheEngine, key: str) -> CachedReply:
    """One cached blend."""
    return _cached(await engine.blends.find(key))


@router.get(
    "/blends/{key}/weights",
    tags=["blends"],
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "a safetensors file"}},
)
@needs("manage")
async def get_weights(
    engine: TheEngine,
    key: str,
    temperature: Annotated[float, Query(description="divide the layer that gives the logits by it")] = 1.0,
) -> StreamingResponse:
    """The blend as a safetensors file; beside the base's config.json, `from_pretrained` loads it.

    A recipe's temperature is no part of its blend: name it here to have it in the file."""
    length, pieces = await engine.weights_file(key, temperature)
    headers = {"Content-Length": str(length), "Content-Disposition": 'attachment; filename="model.safetensors"'}
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


@router.delete(
    "/blends/{key}",
    tags=["blends"],
    responses={409: {"model": Problem, "description": "it is a member of the bank, which stays loaded"}},
)
@needs("manage")
async def delete_blend(engine: TheEngine, key: str) -> DeletedBlendReply:
    """Take a blend out of every tier. A request that uses it now still finishes."""
    return DeletedBlendReply(key=key, tiers=await engine.blends.delete(key))


def _cached(blend: Cached) -> CachedReply:
    return CachedReply.model_validate(blend, from_attributes=True)


def _reply(
    answer: Answer,
    labels: list[str],
    top_k: int | None,
    many: bool,
    arms: ArmReply | list[ArmReply | None] | None = None,
    choices: list[SegmentChoice] | None = None,
    automatic: str | None = None,
) -> PredictReply:
    """`automatic` is the one recipe of a call where it is `auto`, which is no blend's."""
    predictions = []
    for index, prediction in enumerate(answer.predictions):
        ranked = sorted(zip(labels, prediction.scores, strict=True), key=lambda pair: -pair[1])
        label, probability = ranked[0]
        chosen = choices is not None and choices[index].by is not None
        predictions.append(
            PredictionReply(
                label=label,
                probability=probability,
                probabilities=dict(ranked[:top_k]),
                t=prediction.recipe.t_by_variant,
                tokens=prediction.tokens,
                truncated=prediction.truncated,
                chosen_by=choices[index].by if choices else None,
                segment=choices[index].segment if choices else None,
                recipe=prediction.recipe.text if chosen else None,
                key=answer.keys[index] if chosen else None,
                cached=prediction.cached,
            )
        )
    recipes = [prediction.recipe.text for prediction in answer.predictions]
    return PredictReply(
        predictions=predictions,
        recipe=recipes if many else automatic or recipes[0],
        key=answer.keys if many else None if automatic else answer.keys[0],
        source=answer.source,  # type: ignore[arg-type]  # a tier's name; pydantic checks it
        experiment=arms,
        timings=TimingsReply.model_validate(answer.timings, from_attributes=True),
    )


def _arms(met: Met, many: bool) -> ArmReply | list[ArmReply | None] | None:
    """The arms that answered."""
    arms = [
        ArmReply(name=meeting.assignment.experiment, arm=meeting.assignment.arm) if meeting else None
        for meeting in met.meetings
    ]
    return arms if many else arms[0]
