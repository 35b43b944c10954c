"""What an experiment is: arms that are recipes, shares of the traffic, and the metrics that decide.

One definition serves the body of `PUT /v1/experiments/{name}`, the file kept beside a deployment, and what lies in
Redis. An experiment is never changed in place: every change is a new version of it.
"""

from __future__ import annotations

import hashlib
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from app.errors import BadExperiment
from app.names import MAX_NAME, is_name, nfc


def _name(text: str) -> str:
    """The name in NFC; raises `ValueError` for what can be none."""
    name = nfc(text)
    if not is_name(name, first="", further="_.-"):
        raise ValueError(
            f"a name has {MAX_NAME} letters and digits of any script, '_', '.' and '-' at most, "
            "the first a letter or digit"
        )
    return name


Name = Annotated[str, AfterValidator(_name)]
Word = Annotated[str, Field(max_length=256)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _seconds(moment: object) -> object:
    """Seconds since 1970 of what says a moment as ISO 8601 does, or TOML; UTC where it names no zone."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise ValueError("a moment is seconds since 1970, or ISO 8601 such as 2026-01-31T12:00:00Z") from None
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return moment


def _say_what_overrides_are(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """A refusal that does not show the unit, who may be a customer."""
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("overrides are names of arms by unit: 1,000 at most, units of up to 256 characters") from None


Moment = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_seconds)]
Status = Literal["draft", "running", "paused", "stopped"]

DAY = 86_400.0


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(_Part):
    """A recipe under test. A shadow arm is computed beside the one that is shown, and never shown."""

    name: Name
    recipe: str | dict[str, Any] = Field(description="what this arm blends: text or object, no alias and no experiment")
    share: Share = Field(description="its part of the units that are in; shares of arms that are shown add up to 1")
    shadow: bool = Field(False, description="computed in the same batch and only compared; its share is 0")


class Metric(_Part):
    """What is measured for each unit."""

    name: Name
    kind: Literal["binary", "count", "continuous"] = "binary"
    role: Literal["primary", "secondary", "guardrail"] = "secondary"
    better: Literal["higher", "lower"] = "higher"
    margin: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="guardrail: how much worse is tolerated, absolute"
    )
    per: Name | None = Field(None, description="a ratio metric: the count metric that it is divided by")
    cap: float | None = Field(None, gt=0, allow_inf_nan=False, description="most that one unit can add, against bots")


class ExperimentLayer(_Part):
    """A share of all units that this experiment has for itself; experiments of one layer never share a unit."""

    name: Name
    low: Share = 0.0
    high: Share = 1.0


class Experiment(_Part):
    """Arms, who meets them, and what decides. Times are seconds since 1970 in UTC."""

    arms: list[Arm] = Field(min_length=1, max_length=32, fail_fast=True)
    control: Name = Field(description="the arm that others are compared with, and that requests without a unit get")
    metrics: list[Metric] = Field(default_factory=list, max_length=32, fail_fast=True)
    salt: str | None = Field(
        None, max_length=64, description="by default the experiment's name; decides who meets what"
    )
    coverage: Share = Field(1.0, description="part of all units that is in; may grow without moving anybody who is in")
    layer: ExperimentLayer | None = Field(
        None, description="units that this experiment shares with no other of the layer"
    )
    holdout: Share = Field(0.0, description="part of all units that no experiment ever touches")
    targeting: dict[Word, Annotated[list[Word], Field(max_length=1_000, fail_fast=True)]] = Field(
        default_factory=dict,
        max_length=32,
        fail_fast=True,
        description="attributes of a request and the values that let it in",
    )
    overrides: Annotated[dict[Word, Name], WrapValidator(_say_what_overrides_are)] = Field(
        default_factory=dict, max_length=1_000, fail_fast=True, description="units of testers, and the arm each gets"
    )
    start: Moment | None = Field(None, description="not before; seconds since 1970, or ISO 8601")
    stop: Moment | None = Field(None, description="not after; seconds since 1970, or ISO 8601")
    planned_units: int | None = Field(
        None, gt=0, description="units of all arms together at the planned end; none: watched with an open end"
    )
    window: float = Field(
        7 * DAY, gt=0, allow_inf_nan=False, description="seconds after a unit's first exposure that its outcomes count"
    )
    mode: Literal["test", "bandit"] = "test"
    period: float = Field(DAY, gt=0, description="bandit: seconds after which shares are worked out anew")
    status: Status = "draft"

    @property
    def shown(self) -> list[Arm]:
        """Arms that units meet, in the order given."""
        return [arm for arm in self.arms if not arm.shadow]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [arm.name for arm in self.arms]
        _unique("arm", names)
        _unique("metric", [metric.name for metric in self.metrics])
        shown = [arm.name for arm in self.shown]
        if self.control not in shown:
            raise ValueError(f"control is {self.control!r}; arms that are shown: {', '.join(shown) or 'none'}")
        total = sum(arm.share for arm in self.shown)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the arms that are shown add up to {total:g} instead of 1")
        for arm in self.arms:
            if arm.shadow and arm.share:
                raise ValueError(f"arm {arm.name!r} is a shadow, so its share is 0 instead of {arm.share:g}")
        for name in self.overrides.values():
            if name not in shown:
                raise ValueError(f"an override is arm {name!r}; arms that are shown: {', '.join(shown)}")
        metrics = {metric.name: metric for metric in self.metrics}
        if sum(metric.role == "primary" for metric in self.metrics) > 1:
            raise ValueError("more than one metric is primary; one decides, others are secondary or guardrails")
        for metric in self.metrics:
            if metric.per is not None and (metric.per not in metrics or metrics[metric.per].kind != "count"):
                raise ValueError(f"metric {metric.name!r} is per {metric.per!r}, which is no count metric here")
        if self.layer and self.layer.low >= self.layer.high:
            raise ValueError(f"layer {self.layer.name!r} goes from {self.layer.low:g} to {self.layer.high:g}: empty")
        if self.start is not None and self.stop is not None and self.start >= self.stop:
            raise ValueError("stop lies before start")
        return self


def _unique(what: str, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two {what}s are called {twice!r}")


NAMES = TypeAdapter(Name)


def read_experiments(file: Path) -> dict[str, Experiment]:
    """The experiments of a file by name; raises `BadExperiment` with a sentence that says where it is wrong."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadExperiment(f"{file} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadExperiment(f"{file}: {error}") from None
    return {check_name(name): _read(file, name, table) for name, table in tables.items()}


def digest(experiment: Experiment) -> str:
    """What a file said of an experiment, in 32 digits; fields that it does not name are no part of it."""
    return hashlib.sha256(experiment.model_dump_json(exclude_unset=True).encode()).hexdigest()[:32]


def check_name(name: str) -> str:
    try:
        return NAMES.validate_python(name)
    except ValidationError:
        raise BadExperiment(
            f"{name[:64]!r} can be no experiment's name: 64 letters and digits of any script, '_', '.' and '-' at "
            "most, the first a letter or digit"
        ) from None


def _read(file: Path, name: str, table: object) -> Experiment:
    try:
        return Experiment.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        raise BadExperiment(f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
