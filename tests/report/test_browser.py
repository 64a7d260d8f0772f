"""The page in a real browser: filters, links, blur, keyboard, dark mode, phone width, hostile text, speed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from safeserve.report.html import ReportInput, render_report, report_from_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless chromium for all tests."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def run(make_run: Callable[..., Path]) -> ReportInput:
    return report_from_run(make_run())


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``visit(run, hash, **context)`` opens the page; errors on the console and requests fail the test at its end."""
    wrong: list[str] = []
    contexts = []

    def opened(run: ReportInput, anchor: str = "", **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render_report(run), encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
        page.goto(path.as_uri() + anchor)
        page.wait_for_function("document.getElementById('count').textContent !== ''")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def count(page: Any) -> str:
    return str(page.locator("#count").inner_text())


def test_answers_are_listed_and_filtered(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    assert page.locator("article").count() == 20  # the first page of answers
    assert count(page) == "556 of 556 prompts"
    page.locator("select[name=benchmark]").select_option("starter-harmful")
    assert count(page) == "168 of 556 prompts"
    page.locator("select[name=change]").select_option("fixed")  # unsafe in base: 0 to 99, in dpo: 0 to 9
    assert count(page) == "90 of 556 prompts"
    page.locator("select[name=change]").select_option("broken")
    assert count(page) == "0 of 556 prompts"
    page.locator("select[name=change]").select_option("")
    page.locator("select[name=category]").select_option("odd")
    assert count(page) == "84 of 556 prompts"
    page.locator("input[name=search]").fill("question 7?")
    assert count(page) == "1 of 556 prompts"


def test_show_more(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("#more").click()
    assert page.locator("article").count() == 40


def test_a_link_leads_to_one_answer(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run, "#starter-look-alike%2Fstarter-look-alike-031%2F0")
    assert count(page) == "1 of 556 prompts"
    assert "starter-look-alike-031" in page.locator("article .where").inner_text()
    page.get_by_role("button", name="All answers").click()
    assert count(page) == "556 of 556 prompts"
    assert "#" not in page.url
    page.locator("article .link").nth(2).click()
    assert count(page) == "1 of 556 prompts"
    assert visit(run, "#%E0%A4%A").locator("article").count() == 20, "a broken address is no error"


def test_harm_is_blurred_until_asked_for_also_by_keyboard(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("select[name=benchmark]").select_option("starter-harmful")
    veils = page.locator(".veil")
    assert veils.count() == 40
    assert "blur" in veils.first.locator(".text").evaluate("node => getComputedStyle(node).filter")
    assert page.get_by_role("button", name="Show the answer to a harmful prompt").count() == 40
    veils.first.focus()
    page.keyboard.press("Enter")
    assert veils.count() == 39
    veils.first.click()
    assert veils.count() == 38
    page.locator("select[name=benchmark]").select_option("starter-helpful")
    assert veils.count() == 0


def test_everything_can_be_reached_by_tab(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("select[name=benchmark]").focus()
    seen = []
    for _ in range(14):
        seen.append(page.evaluate("document.activeElement.name || document.activeElement.className"))
        page.keyboard.press("Tab")
    assert seen[:6] == ["benchmark", "mode0", "mode1", "change", "category", "flag"], seen
    assert "link" in seen
    assert "veil" in seen


def test_dark_mode_and_phone_width(run: ReportInput, visit: Callable[..., Any]) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = visit(run, color_scheme="light").evaluate(ground)
    phone = visit(run, color_scheme="dark", viewport={"width": 380, "height": 800}, is_mobile=True)
    dark = phone.evaluate(ground)
    assert sum(map(int, light[4:-1].split(","))) > 600 > 200 > sum(map(int, dark[4:-1].split(",")))
    assert phone.evaluate("document.documentElement.scrollWidth") <= 380


def test_hostile_answers_are_shown_as_they_are(run: ReportInput, visit: Callable[..., Any], hostile: Any) -> None:
    page = visit(run)
    page.locator("select[name=benchmark]").select_option("starter-helpful")
    told = page.locator("article .side:nth-child(2) .text").all_text_contents()
    for text in hostile:
        assert text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") in told, text[:40]
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.scripts.length") == 2


def many(run: ReportInput, number: int = 5000) -> ReportInput:
    """The run with so many prompts, answers of 60 words each."""
    rng = random.Random(5)
    words = [f"{rng.choice('bcdfglmnprst')}{rng.choice('aeiou')}{rng.choice('lmnrst')}{n}" for n in range(2000)]
    sample = run.samples[0]
    samples = []
    for index in range(number):
        answers = {
            model: {**given, "text": " ".join(rng.choices(words, k=60))} for model, given in sample["answers"].items()
        }
        samples.append({**sample, "id": str(index), "answers": answers})
    return replace(run, samples=samples)


def test_five_thousand_answers_open_and_filter_quickly(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(many(run))
    assert count(page) == "5000 of 5000 prompts"
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint <= 1000
    took = page.evaluate(
        """() => {
          const box = document.querySelector("input[name=search]");
          const times = ["bal", "cor", "zzzz", "fen1", ""].map((text) => {
            const start = performance.now();
            box.value = text;
            box.dispatchEvent(new Event("input", { bubbles: true }));
            document.body.getBoundingClientRect(); // layout is part of the answer
            return performance.now() - start;
          });
          return times.sort((a, b) => a - b)[2];
        }"""
    )
    assert took <= 150
