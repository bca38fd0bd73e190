"""The table of networks, made for the smallest of them."""

from __future__ import annotations

import csv

from campaigns import networks


def test_table_of_networks(tmp_path, capsys):
    names = ["ds-cnn", "autoencoder"]
    networks.main(["--quick", "--networks", *names, "--samples", "2", "--repetitions", "1", "--output", str(tmp_path)])
    with (tmp_path / "networks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == names
    assert [row["parameters"] for row in rows] == ["24,908", "269,992"]
    assert [row["prepared layers"] for row in rows] == ["10", "10"]
    for row in rows:
        assert (row["integer-only"], row["file differs"]) == ("yes", "0")
        assert int(row["codes"].replace(",", "")) > 1000
        assert float(row["ratio"]) > 0
    page = (tmp_path / "networks.md").read_text()
    assert "| ds-cnn | 1x49x10 | 24,908 | 24,908 | 10 | yes |" in page
    assert "ds-cnn" in capsys.readouterr().out
