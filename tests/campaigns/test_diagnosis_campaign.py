"""The campaign of planted faults: every fault changes what it says it does, and the page counts what the rows say."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from campaigns import diagnosis
from lowbit.diagnosis import Kind


@pytest.fixture(scope="module")
def subject():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            diagnosis, "fit", lambda model, *_, **__: model.eval()
        )  # untrained: where faults go is what is looked at
        return diagnosis.subject("transformer", 1, None)


@pytest.mark.parametrize("plant", diagnosis.FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_in_one_place_and_has_a_kind(subject, plant):
    found = 0
    for setting in (diagnosis.Setting(8, "lsq+4", integer_only=True), diagnosis.Setting(4, "lsq")):
        model = setting.prepare(subject)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            planted = plant(subject, setting, copy.deepcopy(model), random.Random(0))
        except diagnosis.Absent:
            continue
        found += 1
        assert planted.kind in Kind
        named = {place.layer for place in diagnosis.places(planted.model)}
        assert planted.layer in named
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # a copy
        if plant in (diagnosis.low_bits, diagnosis.unnormalized_calibration, diagnosis.oscillation):
            continue
        after = planted.model.state_dict()
        kept = {name for name in before if name in after and torch.equal(before[name], after[name])}
        changed = {name.rpartition(".")[0] for name in before.keys() - kept}
        assert changed and all(name.startswith(planted.layer) for name in changed)
    assert found or plant is diagnosis.batchnorm_statistics  # a transformer has none


def row(fault: str, found: bool, seed: str = "1", top1: str = "90.0") -> dict[str, str]:
    values = (
        "net",
        "W4A4 lsq",
        seed,
        fault,
        "a",
        "outlier",
        "b",
        "clipped",
        "yes" if found else "no",
        "1",
        top1,
        "92.0",
    )
    return dict(zip(diagnosis.FIELDS, values))


def test_the_page_counts():
    rows = [row("outlier", True), row("outlier", False), row("outlier", True, seed="0"), row("none", True)]
    lossy = [row("none", False, seed="2", top1="60.0"), row("outlier", False, seed="2")]
    lossy.append({**row("none", False), "network": "transformer", "setting": "W2A2 lsq"})
    text = diagnosis.page([*rows, row("none", False), row("none", True, seed="0"), *lossy])
    assert "| layer and kind named first | 1 of 2, 50 % | 2 of 3, 67 % |" in text
    assert "| the same in networks that had lost more | 0 of 1, 0 % | 0 of 1, 0 % |" in text
    assert "| nothing found in a healthy network | 1 of 2, 50 % | 2 of 3, 67 % |" in text
    assert "2 networks without a planted fault had lost more than 5 points" in text
    assert "| net | W4A4 lsq | 1 | outlier | a | clipped at b |" in text


def test_a_campaign_goes_on(tmp_path, monkeypatch, subject):
    monkeypatch.setattr(diagnosis, "fit", lambda model, *_, **__: model.eval())
    monkeypatch.setattr(diagnosis, "subject", lambda *_: subject)
    monkeypatch.setattr(diagnosis, "SETTINGS", (diagnosis.Setting(8, "lsq"),))
    monkeypatch.setattr(diagnosis, "HEALTHY_ONLY", ())
    monkeypatch.setattr(diagnosis, "FAULTS", (diagnosis.dead_channel, diagnosis.step_at_bound))
    diagnosis.main(["--output", str(tmp_path), "--networks", "transformer", "--seeds", "1"])
    rows = diagnosis.read(tmp_path / "diagnosis.csv")
    assert [each["fault"] for each in rows] == ["none", "dead_channel", "step_at_bound"]
    assert [each["found"] for each in rows[1:]] == ["yes", "yes"]
    monkeypatch.setattr(diagnosis, "diagnose", lambda *_, **__: pytest.fail("measured again"))
    diagnosis.main(["--output", str(tmp_path), "--networks", "transformer", "--seeds", "1"])
    assert diagnosis.read(tmp_path / "diagnosis.csv") == rows
    assert (tmp_path / "diagnosis.md").read_text().startswith("# Faults planted")
