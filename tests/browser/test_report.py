"""The report in a real browser: nothing is asked of the network, nothing goes wrong, and people can read it.

Screenshots are left in build/browser, to be looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chain import EVALUATION, Made, make_chain, new_work, seal
from playwright.sync_api import Browser, Page, sync_playwright

from tenfold.components.evaluate import stage as evaluate
from tenfold.config import EvaluateConfig
from tenfold.data.manifest import Dataset
from tenfold.report.render import render

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).parents[2] / "build" / "browser"
#: Every text's contrast against what is painted behind it, by WCAG 2.2's formula; those under its level AA.
_FAINT = """() => {
  const light = (c) => { const f = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
                         return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || element.closest('svg') || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    let behind = element, color = [255, 255, 255, 0];
    while (behind) {
      const own = rgb(getComputedStyle(behind).backgroundColor);
      if (own.length === 3 || own[3] > 0.99) { color = own; break; }
      behind = behind.parentElement;
    }
    const a = light(rgb(style.color)), b = light(color);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (contrast < (large ? 3 : 4.5)) found.push([text.slice(0, 40), contrast.toFixed(2)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "no Chromium is installed (apt-get install chromium), or set CHROMIUM to its path"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
                  "--disable-background-networking", "--disable-sync"],
        )  # fmt: skip
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A report of a real evaluation, with the verdict of a gate."""
    folder = tmp_path_factory.mktemp("report")
    made: Made = make_chain(folder / "stages", digits)
    outputs = evaluate.Outputs(folder / "evaluation", folder / "first.html", folder / "served")
    inputs = evaluate.Inputs(
        digits.uri, EVALUATION, seal(made.root / "views", "augment"), seal(made.encoder, "pretrain"),
        seal(made.baseline, "baseline"), seal(made.finetuned, "finetune"),
        seal(made.teacher, "self_train", enabled=True), seal(made.soft_labels, "pseudo_label"),
        seal(made.student, "distill"),
    )  # fmt: skip
    evaluate.run(EvaluateConfig(bootstrap=100, export=False), inputs, outputs, new_work(folder / "stages", "evaluate"))
    found = json.loads((outputs.evaluation / "evaluation.json").read_text())
    checks = [{"name": "top-1", "passed": False, "told": "top-1 31.2% against the champion's 30.9%, perhaps by chance"},
              {"name": "classes", "passed": True, "told": "no class loses"}]  # fmt: skip
    verdict = {"alias": "challenger", "model": "tenfold-student", "version": "2", "checks": checks,
               "champion": {"version": "1", "top1": 0.309}}  # fmt: skip
    path = folder / "report.html"
    path.write_text(render(found, verdict), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Callable[..., Page]]:
    """Open the report: ``opened(width, scheme)``; what it asked for and complained of is checked at the end."""
    pages: list[tuple[Page, list[str], list[str]]] = []

    def run(width: int, scheme: str) -> Page:
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if scheme == "dark" else "light"
        )
        asked: list[str] = []
        told: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(report.as_uri())
        pages.append((page, asked, told))
        return page

    yield run
    for page, asked, told in pages:
        page.close()
        assert told == []
        assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_can_be_read_on_a_desk_and_on_a_phone_by_day_and_by_night(
    opened: Callable[..., Page], width: int, scheme: str
) -> None:
    page = opened(width, scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"report-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0
    assert page.locator("svg").count() >= 3
    assert page.evaluate(_FAINT) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")
    assert page.locator("tr.served").count() == 1
    assert "Registered as challenger" in page.inner_text(".verdict")


def test_the_report_prints_on_pages_without_cutting_its_tables(opened: Callable[..., Page]) -> None:
    page = opened(1280, "dark")
    page.emulate_media(media="print")
    pdf = page.pdf(path=SHOTS / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert pdf.count(b"/Type /Page\n") > 1 or pdf.count(b"/Type /Page ") > 1 or pdf.count(b"/Type /Page/") > 1
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "ink is dear"
    cut = "[...document.querySelectorAll('.scroll, .tall')].filter((e) => e.scrollHeight > e.clientHeight + 1)"
    assert page.evaluate(f"{cut}.length") == 0
