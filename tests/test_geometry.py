from __future__ import annotations

import pytest
import torch

from app.weights import geometry


def test_norms_and_angles_of_deltas() -> None:
    base = torch.tensor([1.0, 1.0, 1.0])
    deltas = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [-6.0, -8.0, 0.0], [0.0, 0.0, 0.0]])
    products = geometry.gram(torch.cat([base[None], base + deltas]))
    assert geometry.norms(products).tolist() == pytest.approx([5, 2, 10, 0])
    angles = geometry.angles(products)
    assert angles[0].tolist() == pytest.approx([0, 90, 180, 90], abs=1e-4)
    assert torch.equal(angles, angles.T)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 1000)
    whole = geometry.gram(rows)
    monkeypatch.setattr(geometry, "CHUNK", 64)
    torch.testing.assert_close(geometry.gram(rows), whole)
