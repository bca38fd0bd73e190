"""The page about a run: what is in it, that it needs nothing from outside, and how a real browser shows and sorts it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import lowbit
from lowbit.diagnosis import Diagnosis
from lowbit.errors import LowbitError
from lowbit.report import svg, write_report
from tests.diagnosis.networks import Small, settled
from tests.report.test_report import write_run


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 8, 8)
    network = settled(Small(), x)
    model = lowbit.calibrate(lowbit.prepare(network, weights=4, activations=4), [x]).eval()
    with torch.no_grad():
        model.conv3.weight[2] = 0
    return lowbit.diagnose(model, [(x, network(x).argmax(1))], network)


def run_folder(folder: Path, diagnosis: Diagnosis | None) -> Path:
    looks = [
        {"event": "look", "epoch": 0, "step": step, "quantizers": {
            "layer0.weight_quantizer": {"step": 0.1, "moved": 1 + step / 10, "gradient": 0.1, "pace": 2.0, "changed": 0.02,
                                        "oscillating": 0.01, "error": 0.2},
            "layer0.input_quantizer": {"step": 0.1, "moved": 0.9, "gradient": 0.1}}}
        for step in (4, 54)
    ]  # fmt: skip
    write_run(folder, final=44.5, tail="".join(json.dumps(look) + "\n" for look in looks))
    if diagnosis is not None:
        (folder / "diagnosis.json").write_text(diagnosis.to_json())
    return folder


class Reader(HTMLParser):
    """Text, tags and attributes; refuses tags that are not closed in order."""

    VOID = ("meta", "br", "link", "img", "line", "rect", "circle", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.said = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.said += data


def test_one_run(tmp_path, diagnosis):
    folder = run_folder(tmp_path / "a <b>&", diagnosis)
    text = write_report([folder], folder / "report.html").read_text()
    page = Reader(text)
    assert "a <b>&" in page.said and "a <b>" not in text.replace("&lt;", "[")
    assert "44.50 %" in page.said and "dead-channel at conv3" in page.said
    assert all(f"{name} weight" in page.said for name in ("conv1", "conv2", "conv3", "conv4", "linear"))
    heads = ["Findings", "Plots", "Layers", "Over training", "Batch-norm", "Values and codes", "Files"]
    assert re.findall("<h2>([^<]+)", text) == heads
    # Nothing is fetched: no address but those of the run's own files, no script or style of another place.
    assert "http" not in text and "//" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert not {(tag, name) for tag, name, _ in page.attributes if name == "src" or tag in ("link", "img", "iframe")}
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert {"config.json", "metrics.jsonl", "diagnosis.json"} <= set(links)
    assert all((folder / link).exists() for link in links)


def test_the_figures_are_those_of_the_diagnosis(tmp_path, diagnosis):
    page = Reader(diagnosis.to_html(tmp_path / "d.html", "mine").read_text())
    for layer in diagnosis.layers:
        assert f"{layer.accumulated:.1f}" in page.said and f"{layer.alone:.1f}" in page.said
    values = {value for tag, name, value in page.attributes if (tag, name) == ("td", "data-v")}
    for tensor in diagnosis.tensors:
        assert str(json.loads(json.dumps(float(f"{tensor.sqnr:.6g}")))) in values
    assert f"{diagnosis.accuracy.quantized:.2f} %" in page.said
    assert diagnosis.findings[0].sentence.split("(")[0] in page.said


def test_several_runs_side_by_side(tmp_path, diagnosis):
    folders = [
        run_folder(tmp_path / "a", diagnosis),
        run_folder(tmp_path / "b", replace(diagnosis, findings=())),
        write_run(tmp_path / "c"),
    ]
    text = write_report(folders, tmp_path / "all.html").read_text()
    page = Reader(text)
    assert "3 runs side by side" in page.said
    assert "dead-channel at conv3" in page.said and "nothing found" in page.said
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert {"a/config.json", "b/config.json", "c/config.json"} <= set(links)


def test_runs_of_one_name(tmp_path, diagnosis):
    (tmp_path / "x").mkdir()
    folders = [run_folder(tmp_path / "a", diagnosis), run_folder(tmp_path / "x" / "a", diagnosis)]
    page = Reader(write_report(folders, tmp_path / "all.html").read_text())
    assert str(folders[1]) in page.said


def test_bad_input(tmp_path, diagnosis):
    with pytest.raises(LowbitError, match="no run is there"):
        write_report([tmp_path], tmp_path / "r.html")
    folder = write_run(tmp_path / "a", epochs=0)
    with pytest.raises(LowbitError, match=r"has no finished epoch, so that there is nothing to report; train it on"):
        write_report([folder], tmp_path / "r.html")
    folder = write_run(tmp_path / "b")
    (folder / "diagnosis.json").write_text('{"layers": []}')
    with pytest.raises(LowbitError, match=r"is not a diagnosis; delete it"):
        write_report([folder], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.9, 1.06), (-3e-7, 2e-7), (12, 12), (0, 1e6)])
def test_ticks(low, high):
    found = svg.ticks(low, high)
    assert 1 <= len(found) <= 11 and all(low - 1e-12 <= each <= high + 1e-12 for each in found)
    gaps = {round((b - a) / (high - low), 9) for a, b in pairwise(found)} if high > low else {0}
    assert len(gaps) == 1


def test_points_lie_where_their_numbers_say():
    frame = svg.Frame((0, 10), (1, 100), log=True)
    (x0, y0), (x1, y1), (_, middle) = frame.at(0, 1), frame.at(10, 100), frame.at(5, 10)
    assert x0 < x1 and y0 > y1 and middle == pytest.approx((y0 + y1) / 2)


def test_epochs_are_whole_numbers_and_large_ones_are_short():
    line = svg.Series("test", [(1, 0.0), (2, 12_000.0), (3, 18_400.0)], "c1")
    shown = re.findall(r">([^<>]+)</text>", svg.lines([line], "bytes", x_label="epoch", y_label="bytes"))
    assert [each for each in shown if each in ("1", "1.5", "2", "2.5", "3")] == ["1", "2", "3"]
    assert {"5000", "10k", "15k"} <= set(shown)


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs a browser: chromium is not installed (Debian: apt-get install chromium)")
    return found


def browse(chromium: str, tmp_path: Path, page: Path, *arguments: str) -> str:
    """What a headless browser without a network gives for a page."""
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", *arguments, page.resolve().as_uri()]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout


def test_a_browser_sorts_the_table(chromium, tmp_path, diagnosis):
    folder = run_folder(tmp_path / "a", diagnosis)
    path = write_report([folder], folder / "report.html")
    # The same page, with somebody who clicks twice on the column "alone dB" and writes down what is there.
    clicks = """<script>
      onerror = message => document.body.append("ERROR " + message);
      const table = document.querySelector("table.sorts"), heads = [...table.querySelectorAll("th")];
      const column = heads.findIndex(each => each.textContent === "alone dB"), seen = [];
      for (const _ of [1, 2]) { heads[column].click(); seen.push([...table.tBodies[0].rows].map(row => row.cells[0].textContent).join(" ")); }
      document.body.append("SEEN [" + seen.join("|") + "]");
    </script></body>"""
    tried = tmp_path / "tried.html"
    tried.write_text(path.read_text().replace("</body>", clicks))
    shown = browse(chromium, tmp_path, tried, "--dump-dom")
    written = shown.rpartition("</script>")[2]
    assert "ERROR" not in written
    down, up = re.search(r"SEEN \[(.*?)\|(.*?)\]", written).groups()
    by = sorted(diagnosis.layers, key=lambda layer: -layer.alone)
    assert down.split() == [layer.name for layer in by] and up.split() == down.split()[::-1]


def test_a_browser_shows_and_prints_it(chromium, tmp_path, diagnosis):
    from PIL import Image

    folder = run_folder(tmp_path / "a", diagnosis)
    path = write_report([folder], folder / "report.html")
    paper = {}
    for mode, scheme in (("light", 1), ("dark", 0)):
        target = tmp_path / f"{mode}.png"
        browse(
            chromium,
            tmp_path,
            path,
            f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1100,1600",
            f"--screenshot={target}",
        )
        pixels = Image.open(target).convert("L")
        assert pixels.size == (1100, 1600)
        counts = pixels.histogram()
        paper[mode] = max(range(256), key=counts.__getitem__)
        ink = sum(counts[:90]) if mode == "light" else sum(counts[170:])
        assert ink > 10_000  # text that stands out
    assert paper["light"] > 240 and paper["dark"] < 60
    browse(chromium, tmp_path, path, f"--print-to-pdf={tmp_path / 'a.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "a.pdf").stat().st_size > 20_000
