"""A file of experiments, kept beside a deployment: TOML, a table for each.

[tone]
control = "mild"
status = "running"
arms = [{ name = "mild", recipe = "base", share = 0.5 }, { name = "firm", recipe = "service@0.4", share = 0.5 }]
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.errors import BadExperiment
from app.experiments.experiment import Experiment, Name

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
