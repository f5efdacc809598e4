"""qgraph report: its data, the two exports, and the page in a browser."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qgraph.formats import parse_format
from qgraph.models.examples import example_inputs
from qgraph.models.load import load_model
from qgraph.numerics import fake_quant
from qgraph.policy import load_policy
from qgraph.search.values import describe_values, measure_values
from qgraph.tools.report import make_page
from qgraph.tools.show.flow import product_flow
from qgraph.tools.show.graph_lines import read_lines
from tests.tools.command import run
from tests.tools.looked_at import FOUR, convert, save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a converted model, a run of it, and the run's report; it is the working directory."""
    folder = tmp_path_factory.mktemp("report")
    save_model(folder / "model")
    here = Path.cwd()
    os.chdir(folder)
    try:
        Path("four.yaml").write_text(FOUR)
        assert convert(Path("model"), "four.yaml", Path("run/four")).code == 0
        losses = {
            "policy": "four", "baseline": "high", "held_out": {"four": 1.5, "high": 1.4},
            "losses": {"four": [[1, 3.0], [5, 2.0]], "high": [[1, 3.0], [5, 1.9]]},
            "gap_percent": 7.1, "step_ratio": 1.3,
        }  # fmt: skip
        Path("run/losses.json").write_text(json.dumps(losses))
        rows = [
            {"step": step, "module": "model.layers.0.mlp.down_proj", "product": "wgrad", "operand": "input",
             "format": "e2m1/1x16/e4m3/fp32", "sqnr_db": 20.0 - step / 50, "clipped": 0.03, "flushed": 0.07}
            for step in range(200)
        ]  # fmt: skip
        lines = [json.dumps(row) for row in ({"run": {"every": 1}}, *rows)]
        Path("run/qgraph-telemetry.jsonl").write_text("\n".join(lines) + '\n{"step": 20')
        Path("text.txt").write_text("She sells sea shells by the sea shore. " * 9)
        arguments = (
            "--out",
            "r.html",
            "--dot",
            "r.dot",
            "--model-explorer",
            "r.json",
            "--text",
            "text.txt",
        )
        result = run("report", "run", *arguments)
        assert result.code == 0, result.err
        assert result.out == "wrote r.html\nwrote r.json\nwrote r.dot\n"
        yield folder
    finally:
        os.chdir(here)


def _data(page: str) -> dict[str, Any]:
    (text,) = re.findall(
        r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL
    )
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_page_holds_the_plan_and_asks_for_nothing(place: Path) -> None:
    page = (place / "r.html").read_text()
    data = _data(page)
    report = json.loads((place / "run/four/report.json").read_text())
    assert len(data["sites"]) == len(report["products"]) == 49
    by_name = {site["name"]: site for site in data["sites"]}
    inspected = json.loads(run("inspect", "run/four", "--json").out)["products"]
    for product in inspected:
        site = by_name[product["site"]]
        for key in ("module", "role", "op", "status", "reason", "flops", "shape"):
            assert site[key] == product[key]
        if site["status"] == "quantized":
            assert [o["format"] for o in site["operands"]] == [
                o["format"] for o in product["operands"]
            ]
            assert [v["count"] > 0 and v["sqnr"] > 10 for v in site["values"]] == [True, True]
    # Seven layers of the block that is not kept.
    assert sum(site["status"] == "quantized" for site in data["sites"]) == 3 * 7
    assert data["curves"]["losses"]["four"] == [[1, 3.0], [5, 2.0]]
    watched = by_name["model.layers.0.mlp.down_proj:wgrad"]["telemetry"]["input"]
    assert (watched["sqnr_db"][0], watched["sqnr_db"][-1]) == ([0, 20.0], [199, 20.0 - 199 / 50])
    assert len(watched["sqnr_db"]) == 80
    assert data["curves"]["telemetry"]["SQNR in dB, mean"]["wgrad.input"] == watched["sqnr_db"]
    assert data["coverage"].startswith("model.layers.0")
    assert "default-src 'none'" in page
    outside = re.findall(r'(?:src|href)="(?!#)[^"]*"|url\(\s*["\']?http|@import', page)
    assert outside == []
    assert "The Cytoscape Consortium" in page  # its licence goes with it


def test_the_exports_hold_the_same_products_and_edges(place: Path) -> None:
    data = _data((place / "r.html").read_text())
    (graph,) = json.loads((place / "r.json").read_text())["graphs"]
    edges = {
        (int(edge["sourceNodeId"]), int(node["id"]))
        for node in graph["nodes"]
        for edge in node["incomingEdges"]
    }
    assert edges == {(a, b) for a, b in data["edges"]}
    assert [n["namespace"] for n in graph["nodes"]] == [
        site["module"].replace(".", "/") for site in data["sites"]
    ]
    dot = (place / "r.dot").read_text()
    assert {(int(a), int(b)) for a, b in re.findall(r"s(\d+) -> s(\d+);", dot)} == edges
    assert len(re.findall(r"s\d+ \[label=", dot)) == len(data["sites"])
    assert dot.count("{") == dot.count("}")


def test_edges_lead_from_each_product_to_those_that_read_it(place: Path) -> None:
    data = _data((place / "r.html").read_text())
    names = [site["name"] for site in data["sites"]]
    reads: dict[str, set[str]] = {}
    for a, b in data["edges"]:
        reads.setdefault(names[b], set()).add(names[a])
    block = "model.layers.0"
    assert reads[f"{block}.mlp.down_proj:fprop"] == {
        f"{block}.mlp.gate_proj:fprop", f"{block}.mlp.up_proj:fprop"
    }  # fmt: skip
    assert reads[f"{block}.self_attn.o_proj:fprop"] == {f"{block}.self_attn:fprop"}
    # A residual stream carries every product before: only the last is named.
    assert reads["model.layers.1.self_attn.q_proj:fprop"] == {f"{block}.mlp.down_proj:fprop"}


def test_a_product_behind_another_is_no_source() -> None:
    text = """\
p: f32[2] = input
a: f32[2] = aten.mm(p, p)
b: f32[2] = aten.mm(a, p)
sum_1: f32[2] = aten.add(a, b)
c: f32[2] = aten.mm(sum_1, p)
"""
    assert product_flow(read_lines(text), {"a", "b", "c"}) == [("a", "b"), ("b", "c")]


def test_values_are_those_of_the_tensors() -> None:
    torch.manual_seed(0)
    fmt = parse_format("e2m1/1x16/e4m3/fp32")
    x = torch.randn(8, 64)
    x[0, :8] = 0
    y = fake_quant(x, fmt, -1)
    found = describe_values(x, y, fmt, -1)
    error = (x.double() - y.double()).square().sum() / x.double().square().sum()
    assert found.sqnr == pytest.approx(-10 * float(error.log10()))
    assert found.count == 512
    assert found.zeros == 8 / 512
    assert found.flushed == pytest.approx(float(((y == 0) & (x != 0)).sum() / (x != 0).sum()))
    assert sum(found.histogram) == 504
    assert found.scaled
    # In units of the scale the largest code is 6, and nothing lies far beyond it.
    steps = (found.high - found.low) / len(found.histogram)
    last = max(i for i, count in enumerate(found.histogram) if count)
    assert 2.0 ** (found.low + last * steps) < 6 * 17 / 16
    # On the grid, nothing changes, and nothing is flushed or clipped.
    again = describe_values(y, fake_quant(y, fmt, -1), fmt, -1)
    assert again.flushed == 0


def test_measured_values_are_of_the_step_that_trains(tmp_path: Path) -> None:
    torch._dynamo.reset()
    policy = load_policy("int8")
    model = load_model(str(save_model(tmp_path / "model", layers=1)))
    inputs = example_inputs(model, 2, 16)
    found = measure_values(model, policy, inputs)
    seen: dict[str, torch.Tensor] = {}
    module = model.model.layers[0].mlp.down_proj
    module.register_full_backward_hook(lambda _m, _i, out: seen.update(dy=out[0]))
    module.register_forward_hook(lambda _m, i, _o: seen.update(x=i[0]))
    model(**inputs).loss.backward()
    # The forward's other products are quantized too, so values are near, not equal.
    largest = {round(v.amax, 9) for values in found.values() for v in values if v is not None}
    for name in ("x", "dy"):
        wanted = float(seen[name].detach().abs().max())
        assert min(abs(amax / wanted - 1) for amax in largest) < 0.05
    weight = float(module.weight.detach().abs().max())
    assert round(weight, 9) in largest


def _chromium() -> str:
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    if not found:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    pytest.importorskip("playwright", reason="playwright is not installed")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = _chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


def _open(browser: Any, file: Path) -> tuple[Any, list[str]]:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if request.url[:5] != "file:" else None
    )
    page.goto(file.as_uri())
    page.wait_for_selector("#panel h2")
    return page, said


def test_a_browser_opens_it_and_finds_and_shows_a_product(place: Path, browser: Any) -> None:
    page, said = _open(browser, place / "r.html")
    assert page.text_content("#panel h2") == "the model"
    page.fill("#search", "0.mlp.down wgrad")
    assert page.text_content("#hits .first") == "model.layers.0.mlp.down_proj:wgrad"
    page.press("#search", "Enter")
    assert page.text_content("#site") == "model.layers.0.mlp.down_proj:wgrad"
    assert page.locator("svg.histogram").count() == 2
    assert page.locator("svg.curves polyline").count() == 3
    panel = page.text_content("#panel")
    for words in (
        "grad_output e2m1/1x16/e4m3/fp32 rht stochastic",
        "SQNR",
        "code after",
        "qgraph.hadamard",
    ):
        assert words in panel
    # A click in the middle of a product's box opens its panel.
    at = page.evaluate(
        """() => { const node = cy.getElementById('s:' + numbers.get('model.layers.0.mlp.up_proj:fprop'));
        cy.center(node); return node.renderedPosition(); }"""
    )
    box = page.locator("#graph").bounding_box()
    page.mouse.click(box["x"] + at["x"], box["y"] + at["y"])
    page.wait_for_function("document.querySelector('#site')?.textContent.includes('up_proj:fprop')")
    for tab, words in (
        ("training", "wgrad.input"),
        ("cost", "21.48"),
        ("coverage", "products quantized"),
    ):
        page.click(f"#tabs button[data-page={tab}]")
        assert words in page.text_content("#panel")
    # Panning and zooming.
    zoom = page.evaluate("cy.zoom()")
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.wheel(0, -300)
    page.wait_for_function(f"cy.zoom() > {zoom}")
    pan = page.evaluate("cy.pan().x")
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 95, box["y"] + 5, steps=4)
    page.mouse.up()
    assert page.evaluate("cy.pan().x") != pan
    count = page.evaluate("cy.nodes().length")
    page.click("#fold")
    assert page.evaluate("cy.nodes().length") < count
    assert said == []
    page.close()


def test_seventy_layers_open_in_two_seconds(place: Path, browser: Any) -> None:
    data = _data((place / "r.html").read_text())
    (place / "big.html").write_text(make_page(_deep(data, 70)))
    page, said = _open(browser, place / "big.html")
    # Work done by the page itself: a busy machine makes the clock run on without it.
    seconds = page.evaluate("performance.getEntriesByName('ready')[0].duration / 1000")
    assert seconds < 2
    shown = page.evaluate(
        "cy.nodes().map(node => node.renderedBoundingBox().w).filter(w => w > 60).length"
    )
    assert shown >= 70  # each block wide enough to read its name
    start = time.perf_counter()
    page.fill("#search", "layers.69.mlp.down_proj wgrad")
    page.press("#search", "Enter")
    assert page.text_content("#site") == "model.layers.69.mlp.down_proj:wgrad"
    assert time.perf_counter() - start < 10
    assert said == []
    page.close()


def _deep(data: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return the report of a model whose first block is repeated."""
    made = {**data, "sites": [], "edges": []}
    block = [i for i, site in enumerate(data["sites"]) if ".layers.0." in site["name"]]
    order = {number: place for place, number in enumerate(block)}
    last = next(i for i in block if data["sites"][i]["name"].endswith("down_proj:fprop"))
    first = [i for i in block if re.search(r"[qkv]_proj:fprop", data["sites"][i]["name"])]
    for layer in range(layers):
        start = layer * len(block)
        for number in block:
            site = copy.copy(data["sites"][number])
            for key in ("name", "module"):
                site[key] = site[key].replace(".layers.0.", f".layers.{layer}.")
            made["sites"].append(site)
        made["edges"] += [
            [start + order[a], start + order[b]]
            for a, b in data["edges"]
            if a in order and b in order
        ]
        if layer:
            made["edges"] += [[start - len(block) + order[last], start + order[i]] for i in first]
    return made
