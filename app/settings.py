"""Every knob: its name in the environment, default, unit and meaning.

`TWEEN_<NAME>` sets a field; `REDIS_URL` and OpenTelemetry's variable keep the names that everybody uses. A name that
does not exist is refused at start-up, because a misspelt limit is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from app.cache.redis_policy import Mode
from app.client_key import VARIABLE as CALLERS_KEY
from app.errors import BadSettings

PREFIX = "TWEEN_"
INTRODUCTION = """# Settings

Environment variables; a misspelt `TWEEN_` name is refused. `tween serve --help` lists the command line. `make settings`
writes this page from `app/settings.py`.

| variable | default | meaning |
|---|---|---|"""
FREE_NAMES = {"REDIS_URL": "redis_url", "OTEL_EXPORTER_OTLP_ENDPOINT": "otlp_endpoint"}


class Settings(BaseModel, frozen=True, extra="forbid"):
    """The knobs. Sizes in MiB are multiples of 1,048,576 bytes."""

    bank: Path | None = Field(None, description="the bank file (TOML) that names base and variants")
    experiments: Path | None = Field(None, description="a file of experiments (TOML), followed when a pod starts")
    spool: Path | None = Field(
        None, description="folder for events of experiments on their way to Redis; by default one below the user's home"
    )
    spool_mib: int = Field(256, gt=0, description="room for these events while Redis is away, MiB")
    events_ttl_s: int = Field(
        90 * 24 * 3600, gt=0, description="how long units' records are kept after an experiment has stopped, s"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    max_header_kib: int = Field(32, gt=0, description="largest request headers, KiB")
    header_s: float = Field(10, gt=0, allow_inf_nan=False, description="time for a request's headers to arrive, s")
    body_s: float = Field(30, gt=0, allow_inf_nan=False, description="time for a request's body to arrive, s")
    write_s: float = Field(
        30, gt=0, allow_inf_nan=False, description="how long a caller may take nothing of its reply, s"
    )
    drain_s: float = Field(
        15, ge=0, allow_inf_nan=False, description="how long a service that was told to leave goes on serving, s"
    )
    api_keys: Path | None = Field(None, description="the file of API keys (TOML or JSON); without it, all is open")
    model_sources: str = Field(
        "", description="folders and hub names (org/*) that members may come from, by commas; empty: any"
    )
    cors_origins: str = Field("", description="origins whose pages may call, separated by commas; * is all of them")
    allowed_hosts: str = Field(
        "",
        description="names, by commas, that a service without keys answers to beside addresses and localhost; "
        "*.example.org takes all below it, * any",
    )
    device: str = Field("auto", description="where weights live: auto (a GPU if there is one), cpu, cuda, cuda:1")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="what weights are stored as and computed in; float16 is for GPUs"
    )
    cpu_int8: Literal["on", "off"] = Field("off", description="int8 products for hot blends on CPUs that have VNNI")
    gpu_graphs: Literal["on", "off"] = Field(
        "off", description="small passes on a GPU are recorded and replayed (CUDA graphs); not yet run on one"
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=512)] = Field(
        "auto",
        description="processes that compute: auto (one for each core; none on a GPU), or how many; 0 is a thread",
    )
    default_recipe: str = Field("base", description="the recipe of requests that name none, without @prod")
    t_low: float = Field(-1.0, le=0, allow_inf_nan=False, description="lowest t that a recipe may name")
    t_high: float = Field(2.0, ge=1, allow_inf_nan=False, description="highest t that a recipe may name")
    memory_tier_mib: int = Field(1024, gt=0, description="room for finished blends in this process, MiB")
    redis_url: str | None = Field(None, description="the shared Redis; none starts a private one")
    redis_namespace: str = Field("tween", pattern=r"^[A-Za-z0-9_-]+$", description="first part of every key in Redis")
    redis_blends: Mode = Field("auto", description="blends in Redis: auto (where that is sooner), always, never")
    redis_blends_mib: int = Field(512, gt=0, description="room for this bank's blends in Redis, MiB")
    private_redis_mib: int = Field(1024, gt=0, description="memory of the private Redis, MiB")
    blend_ttl_s: int = Field(24 * 3600, gt=0, description="how long a blend stays in Redis unused by a write, s")
    prediction_cache: bool = Field(True, description="whether predictions are remembered, here and in Redis")
    prediction_ttl_s: int = Field(24 * 3600, gt=0, description="how long a prediction stays in Redis, s")
    batch_tokens: int = Field(4096, gt=0, description="most tokens in one forward pass")
    queue_rows: int = Field(1024, gt=0, description="most texts that may wait; beyond it callers get 429")
    queue_ms: int = Field(
        1000, gt=0, description="longest that a text may wait; callers who would wait longer get 429, ms"
    )
    max_texts: int = Field(512, gt=0, le=10_000, description="most texts in one call")
    max_characters: int = Field(
        20_000, gt=0, description="most characters read of a text, or of each half of a pair; longer ones are cut"
    )
    max_tokens: int = Field(512, gt=2, description="most tokens read of a text, below the model's own limit")
    max_body_mib: float = Field(4, gt=0, allow_inf_nan=False, description="largest request body, MiB")
    sweep_texts: int = Field(20_000, gt=0, description="most labelled texts of a sweep")
    sweeps_waiting: int = Field(8, ge=0, description="most sweeps that may wait; beyond it callers get 429")
    sweep_runner: Literal["local", "taskiq"] = Field(
        "local", description="who runs passes of sweeps: local (this pod), taskiq (tween sweep-worker processes)"
    )
    sweep_ttl_s: int = Field(7 * 24 * 3600, gt=0, description="how long a sweep and its logits stay in Redis, s")
    log_format: Literal["human", "json"] = Field("human", description="lines of the log: human, or json")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_texts: bool = Field(False, description="whether the log shows texts of requests, cut short, to find a fault")
    otlp_endpoint: str | None = Field(
        None,
        description="collector of traces (OTLP over HTTP), such as http://collector:4318; without it, none are made",
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **overrides: object) -> Settings:
        """Settings from the environment; `overrides` (command line) win where they are not None.

        Raises `BadSettings` with a sentence that names the variable.
        """
        values: dict[str, object] = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(PREFIX) and name != CALLERS_KEY and value != ""
        }
        values |= {field: environ[name] for name, field in FREE_NAMES.items() if environ.get(name)}
        values |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            name = variable(field)
            if first["type"] == "extra_forbidden":
                known = ", ".join(variable(field) for field in cls.model_fields)
                raise BadSettings(f"{name} is no setting; settings: {known}") from error
            # Values may hold passwords (REDIS_URL), so the message tells the rule and not the value.
            raise BadSettings(f"{name}: {first['msg']}") from error


def variable(field: str) -> str:
    """The environment variable of a field."""
    free = {field: name for name, field in FREE_NAMES.items()}
    return free.get(field, PREFIX + field.upper())


def reference() -> str:
    """The page docs/settings.md; `make settings` writes it."""
    rows = (
        f"| `{variable(field)}` | {'' if info.default in (None, '') else f'`{info.default}`'} | {info.description} |"
        for field, info in Settings.model_fields.items()
    )
    return "\n".join((INTRODUCTION, *rows)) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
