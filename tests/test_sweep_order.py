"""A command line, an HTTP body and a worker's message order the same sweep."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from app.api.sweep_routes import SweepRequest
from app.cli.remote_sweep import _asked
from app.cli.sweep_command import add_sweep
from app.cli.sweep_options import order_of
from app.sweep.sweep_spec import BankFacts, SweepOrder, spec_from

BANK = BankFacts(["sad", "glad"], ["angry", "polite"], [[1.0, 0.2], [0.2, 1.0]])
OPTIONS = (
    "--variant angry --variant polite --variant angry --text body --where split=1 --objective cost --cost 0,1;1,0 "
    "--ramp --robustness --seed 3"
)


def test_a_command_line_a_body_and_a_message_are_the_same_order(tmp_path: Path) -> None:
    lines = [f"text {i},{BANK.labels[i % 2]},{i % 3}" for i in range(60)]
    for name in ("own", "kept"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["body,label,split", *lines]), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_sweep(parser)
    data = [f"{tmp_path}/own.csv:2", "--guard", f"{tmp_path}/kept.csv:1pt:loss:0.95"]
    order = order_of(parser.parse_args([*data, *OPTIONS.split()]))
    body = SweepRequest.model_validate(json.loads(json.dumps(_asked(order)))).order
    message = SweepOrder.of(json.loads(json.dumps(body.values)))
    assert message == body == replace(order, data=body.data, where=None)
    here, there = spec_from(order, BANK), spec_from(message, BANK)
    assert [d.digest for d in here.datasets] == [d.digest for d in there.datasets] and len(here.targets[0]) == 20
    assert here.mixed == there.mixed == ["angry", "polite"] and here.shares == there.shares == [2.0]
    assert (there.guards[0].metric, there.guards[0].margin, there.guards[0].confidence) == ("loss", 0.01, 0.95)
    assert there.ramp and there.robustness and there.cost is not None and (here.cost == there.cost).all()
