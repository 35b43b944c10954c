"""When a pass fails: is it one of its texts, the weights, or the machine?

A batch that fails is run in halves until a row fails alone (`Batcher`). That is no proof yet: everything fails where
the weights or the machine are to blame, and then every further try is wasted. So a plain row is run on the same
weights. If it runs, the text is to blame, and its caller is told so; if not, the rest is not tried.
"""

from __future__ import annotations

from app.errors import PassFailed
from app.models.classifier import Mix
from app.models.tokenizer import Row
from app.serving.executor import Executor, Vector

PLAIN = Row([0], [0], truncated=False)
"""One token, which every model has."""


async def others_run(unit: Executor, operand: Vector | Mix) -> bool:
    """Whether a plain row runs on these weights."""
    try:
        await unit.forward([PLAIN], [operand])
    except Exception:
        return False
    return True


def blamed(row: Row, error: Exception, number: int) -> PassFailed:
    """What the caller of a row is told whose pass fails for no other reason."""
    why = f"the model fails on it ({type(error).__name__}), alone too, and not on other texts; it has {len(row)} tokens"
    return PassFailed(why, number)
