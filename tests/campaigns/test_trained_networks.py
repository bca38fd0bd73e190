"""The campaign of trained networks: one of them on noise, and what the table has is not computed again."""

from __future__ import annotations

import pytest
import torch

from campaigns import trained_networks


def test_a_row_is_computed_once(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 4) for _ in range(2)]
    monkeypatch.setattr(trained_networks, "images", lambda data, count: (batches, batches))
    command = ["--data", ".", "--networks", "siamese", "--steps", "2", "--output", str(tmp_path)]
    trained_networks.main(command)
    (found,) = trained_networks.harness.read_csv(tmp_path / "trained-networks.csv")
    assert (found["network"], found["setting"]) == ("siamese", "W4A4")
    assert found["file differs"] == found["conversion differs"] == "0" and int(found["codes"].replace(",", "")) > 10_000
    assert "| siamese | W4A4 |" in (tmp_path / "trained-networks.md").read_text()
    monkeypatch.setattr(trained_networks, "row", lambda *_: pytest.fail("computed again"))
    trained_networks.main(command)
    assert "siamese" in capsys.readouterr().out
