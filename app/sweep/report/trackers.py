"""A sweep's findings where other experiments of a team are: event files for TensorBoard, an offline run for
Weights & Biases. Both are extras that need no network; neither is needed for the folder that a sweep writes anyway.

Their steps are whole numbers, so a step is a hundredth of t.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from app.errors import BadData
from app.sweep.sweep_result import Point, SweepResult

STEPS = 100


def to_tensorboard(found: SweepResult, folder: Path) -> None:
    """Scalars along t by data set and metric, with the ends of their intervals, and the answer as text.

    Raises `BadData` without tensorboard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BadData("--tensorboard needs tensorboard (pip install 'tween[tensorboard]')") from error
    with SummaryWriter(str(folder)) as writer:
        for point in found.curve:
            for name, value in _numbers(point):
                writer.add_scalar(name, value, round(point.t * STEPS))
        writer.add_text("recipe", found.best.recipe)
        writer.add_text("sentence", found.sentence)
        for number, warning in enumerate(found.warnings):
            writer.add_text("warnings", warning, number)


def to_wandb(found: SweepResult, folder: Path) -> None:
    """A run that `wandb sync` can send later; nothing is sent now. Raises `BadData` without wandb."""
    try:
        import wandb
    except ImportError as error:
        raise BadData("--wandb needs wandb (pip install 'tween[wandb]')") from error
    folder.mkdir(parents=True, exist_ok=True)
    # Only the sweep: nothing of the machine, its packages, its code or what is on the terminal.
    quiet = wandb.Settings(
        silent=True,
        console="off",
        host="",
        disable_git=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    config = {
        "line": found.line,
        "objective": found.objective,
        "rule": found.rule,
        "seed": found.seed,
        "data": {about.name: about.digest for about in found.data},
    }
    with wandb.init(mode="offline", dir=folder, project="tween", name=found.line, config=config, settings=quiet) as run:
        for point in found.curve:
            run.log({"t": point.t, **dict(_numbers(point))}, step=round(point.t * STEPS))
        low, high = found.best.interval
        run.summary.update(
            {
                "recipe": found.best.recipe,
                "best_t": found.best.t,
                "best_t_low": low,
                "best_t_high": high,
                "temperature": found.best.temperature,
                "sentence": found.sentence,
            }
        )
    wandb.teardown()  # its own process writes the file, and only now is it whole


def _numbers(point: Point) -> Iterator[tuple[str, float]]:
    yield "temperature", point.temperature
    for data, values in point.data.items():
        for metric, value in values.items():
            yield f"{data}/{metric}", value.value
            yield f"{data}/{metric}/low", value.low
            yield f"{data}/{metric}/high", value.high
