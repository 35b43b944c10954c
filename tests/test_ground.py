"""What a device cannot do is refused when the service starts."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import pytest
import torch

from app.bootstrap import start_compute
from app.errors import BadSettings
from app.models.bank import BankSpec, load_bank
from app.settings import Settings


@pytest.mark.parametrize(
    ("name", "dtype", "why"),
    [
        ("cpu_int8", torch.bfloat16, "TWEEN_CPU_INT8: .* or the weights are not float32"),
        ("gpu_graphs", torch.float32, "TWEEN_GPU_GRAPHS: weights lie on cpu; only a GPU replays passes"),
    ],
    ids=["int8 of other than float32", "replays without a GPU"],
)
def test_a_setting_that_this_device_cannot_follow_is_refused(
    spec: BankSpec, name: str, dtype: torch.dtype, why: str
) -> None:
    bank = load_bank(spec, torch.device("cpu"), dtype)

    async def main() -> None:
        async with AsyncExitStack() as resources:
            with ThreadPoolExecutor(1) as thread:
                settings = Settings.model_validate({name: "on"})
                await start_compute(settings, bank, bank.arena.new_slots(1), thread, resources)

    with pytest.raises(BadSettings, match=why):
        asyncio.run(main())
