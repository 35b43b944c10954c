"""Wire types that several routes share: names, recipes, texts, timings, versions and refusals."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from app.api.bounded_json import MOST_ENTRIES
from app.api.problems import Problem
from app.names import nfc

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


class TimingsReply(BaseModel):
    """Milliseconds."""

    queue: float
    blend: float
    tokenize: float
    forward: float
    total: float


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
