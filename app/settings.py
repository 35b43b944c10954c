"""Settings: the name in the environment, default, unit and meaning of each.

`TWEEN_<NAME>` sets a field; `REDIS_URL` and OpenTelemetry's variable keep their usual names. The service refuses an
unknown name at start-up, because a misspelt limit is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

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
    """The settings. Sizes in MiB are multiples of 1,048,576 bytes."""

    bank: Path | None = Field(None, description="bank file (TOML): base, variants and tables of segments")
    experiments: Path | None = Field(None, description="experiments file (TOML), applied when a pod starts")
    spool: Path | None = Field(None, description="folder of the event spool; by default one below the user's home")
    spool_mib: int = Field(256, gt=0, description="maximum size of the event spool, MiB")
    events_ttl_s: int = Field(
        90 * 24 * 3600, gt=0, description="retention of units' records after an experiment has stopped, s"
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    max_header_kib: int = Field(32, gt=0, description="maximum size of request headers, KiB")
    header_s: float = Field(10, gt=0, allow_inf_nan=False, description="time-out for a request's headers, s")
    body_s: float = Field(30, gt=0, allow_inf_nan=False, description="time-out for a request's body, s")
    write_s: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="write time-out: disconnects clients that read nothing of their reply, s",
    )
    drain_s: float = Field(
        15,
        ge=0,
        allow_inf_nan=False,
        description="drain period after SIGTERM: the service still accepts requests, s",
    )
    api_keys: Path | None = Field(None, description="file of API keys (TOML or JSON); without it, every call is open")
    model_sources: str = Field(
        "",
        description="allowed sources of members, by commas: folders and hub names (org/*); empty: any",
    )
    cors_origins: str = Field("", description="allowed CORS origins, separated by commas; * allows any")
    allowed_hosts: str = Field(
        "",
        description="allowed host names, by commas, of a service without keys, beside addresses and localhost; "
        "*.example.org allows subdomains, * any name",
    )
    device: str = Field("auto", description="device of the weights: auto (a GPU if there is one), cpu, cuda, cuda:1")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="data type of weights and of the forward pass; float16 is for GPUs"
    )
    cpu_int8: Literal["on", "off"] = Field("off", description="int8 matrix products for hot blends on CPUs with VNNI")
    gpu_graphs: Literal["on", "off"] = Field(
        "off", description="CUDA graphs for small forward passes; not yet run on a GPU"
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=512)] = Field(
        "auto",
        description="worker processes: auto (one for each core; none on a GPU) or a number; 0 computes in a thread",
    )
    default_recipe: str = Field("base", description="recipe of requests without one while there is no alias @prod")
    t_low: float = Field(-1.0, le=0, allow_inf_nan=False, description="minimum t of a recipe")
    t_high: float = Field(2.0, ge=1, allow_inf_nan=False, description="maximum t of a recipe")
    memory_tier_mib: int = Field(1024, gt=0, description="size of the memory tier for blends, MiB")
    redis_url: str | None = Field(
        None, description="URL of the shared Redis; by default the service starts a private one"
    )
    redis_namespace: str = Field("tween", pattern=r"^[A-Za-z0-9_-]+$", description="prefix of every key in Redis")
    redis_blends: Literal["auto", "always", "never"] = Field(
        "auto",
        description="blends in Redis: auto (written when asked for again, read where a build takes longer), "
        "always, never",
    )
    redis_blends_mib: int = Field(512, gt=0, description="byte budget of this bank's blends in Redis, MiB")
    private_redis_mib: int = Field(1024, gt=0, description="maximum memory of the private Redis, MiB")
    blend_ttl_s: int = Field(24 * 3600, gt=0, description="time to live of a blend in Redis since its last write, s")
    prediction_cache: bool = Field(True, description="prediction cache, in memory and in Redis")
    prediction_ttl_s: int = Field(24 * 3600, gt=0, description="time to live of a cached prediction in Redis, s")
    batch_tokens: int = Field(4096, gt=0, description="maximum tokens in one forward pass")
    queue_rows: int = Field(1024, gt=0, description="maximum texts in the queue; beyond it requests get 429")
    queue_ms: int = Field(1000, gt=0, description="maximum queueing delay, ms; beyond it requests get 429")
    max_texts: int = Field(512, gt=0, le=10_000, description="maximum texts in one call")
    max_characters: int = Field(
        20_000, gt=0, description="maximum characters of a text, or of each half of a pair; longer ones are truncated"
    )
    max_tokens: int = Field(512, gt=2, description="maximum tokens of a text, at most the model's own limit")
    max_body_mib: float = Field(4, gt=0, allow_inf_nan=False, description="maximum size of a request body, MiB")
    sweep_texts: int = Field(20_000, gt=0, description="maximum labelled texts of a sweep")
    sweeps_waiting: int = Field(8, ge=0, description="maximum sweeps in the queue; beyond it requests get 429")
    sweep_runner: Literal["local", "taskiq"] = Field(
        "local",
        description="what runs sweeps: local (this pod), taskiq (tween sweep-worker processes)",
    )
    sweep_ttl_s: int = Field(7 * 24 * 3600, gt=0, description="time to live of a sweep and its logits in Redis, s")
    log_format: Literal["human", "json"] = Field("human", description="log format: human, or json")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="minimum log level")
    log_texts: bool = Field(False, description="log the texts of requests, truncated, for debugging")
    otlp_endpoint: str | None = Field(
        None,
        description="endpoint of a trace collector (OTLP over HTTP), such as http://collector:4318; empty: no traces",
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
                raise BadSettings(f"{name} is not a setting; settings: {known}") from error
            # Values may hold passwords (REDIS_URL), so the message names the rule and not the value.
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
