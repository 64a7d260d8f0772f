"""The page in a real browser: filters, links, covered text, keyboard, paper, phone width, hostile text, speed."""

from __future__ import annotations

import json
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


def test_fixed_and_broken_are_counted_as_in_the_table(
    run_with_gaps: Path, visit: Callable[..., Any], table_counts: Callable[..., Any]
) -> None:
    run = report_from_run(run_with_gaps)
    expected = table_counts(run)
    page = visit(run)
    found = {}
    for benchmark, change in expected:
        page.locator("select[name=benchmark]").select_option(benchmark)
        page.locator("select[name=change]").select_option(change)
        found[benchmark, change] = int(count(page).split()[0])
    assert found == expected
    page.locator("select[name=benchmark]").select_option("starter-harmful")
    page.locator("select[name=change]").select_option("changed")
    assert count(page) == "88 of 556 prompts", "an unscored answer is no change"


def test_filters_by_mode_flag_and_judges(
    make_run: Callable[..., Path], rescore: Callable[..., None], visit: Callable[..., Any]
) -> None:
    path = make_run()
    rescore(path, "dpo", "starter-helpful", "modes", {n: {"flags": ["truncated"]} for n in range(7)})
    page = visit(report_from_run(path))
    page.locator("select[name=mode0]").select_option("unsafe_compliance")
    assert count(page) == "100 of 556 prompts"
    page.locator("select[name=mode1]").select_option("safe_answer")
    assert count(page) == "90 of 556 prompts"
    page.locator("select[name=mode0]").select_option("")
    page.locator("select[name=mode1]").select_option("full_refusal")
    assert count(page) == "12 of 556 prompts"
    page.locator("select[name=mode1]").select_option("")
    page.locator("select[name=flag]").select_option("truncated")
    assert count(page) == "7 of 556 prompts"
    page.locator("select[name=flag]").select_option("")
    page.get_by_label("judges disagree").check()
    assert count(page) == "6 of 556 prompts", "the guard cleared 10 to 12 of dpo and 100 to 102 of base"
    assert "unsafe by rules; safe by modes, guard" in page.locator("article").first.inner_text()


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


def test_back_from_one_answer_leads_to_the_list_as_it_was(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("select[name=change]").select_option("fixed")
    page.locator("#more").click()
    page.locator("article .link").nth(25).click()
    assert count(page) == "1 of 556 prompts"
    assert page.locator("select[name=change]").input_value() == ""
    page.go_back()
    page.wait_for_function("document.getElementById('count').textContent === '90 of 556 prompts'")
    assert page.locator("article").count() == 40
    assert page.locator("select[name=change]").input_value() == "fixed"
    assert page.locator("#all").is_hidden()
    page.locator("article .link").nth(3).click()
    page.locator("select[name=benchmark]").select_option("starter-helpful")
    # a filter leads back as well, as soon as the address has changed
    page.wait_for_function("document.getElementById('count').textContent === '220 of 556 prompts'")
    assert "#" not in page.url


IN_CLEAR = """(article) => {
  const walk = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  let text = "";
  while (walk.nextNode()) {
    if (!walk.currentNode.parentElement.closest("[aria-hidden=true]")) text += walk.currentNode.data;
  }
  return text;
}"""


def test_harm_is_covered_until_asked_for_also_by_keyboard(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("select[name=benchmark]").select_option("starter-harmful")
    veiled = page.locator("article.veiled")
    assert veiled.count() == 20
    first = page.locator("article").first
    clear = first.evaluate(IN_CLEAR)
    assert "starter-harmful-000" in clear
    assert "unsafe compliance" in clear
    assert "Question 0?" not in clear, "the prompt is covered"
    assert "An answer." not in clear, "answers, and what judges quote of them, are covered"
    assert first.locator(".cover").count() == 5  # a prompt, two answers, the words of two judges
    blurred = first.locator(".cover").evaluate_all("parts => parts.map((part) => getComputedStyle(part).filter)")
    assert blurred == ["blur(11px)"] * 5, "letters of 16 pixels can still be guessed under 7"
    button = first.get_by_role("button", name="Show prompt and answers")
    button.focus()
    page.keyboard.press("Enter")
    assert veiled.count() == 19
    assert "Question 0?" in first.evaluate(IN_CLEAR)
    assert "blur" not in first.locator(".prompt").evaluate("part => getComputedStyle(part).filter")
    page.keyboard.press("Enter")  # the focus stayed on the button, which now hides
    assert veiled.count() == 20
    page.locator("article").nth(1).locator(".cover").nth(1).click()
    assert veiled.count() == 19
    page.get_by_label("show harmful text").check()
    assert veiled.count() == 0
    page.locator("#more").click()
    assert veiled.count() == 0, "the switch holds for what is listed later"
    page.get_by_label("show harmful text").uncheck()
    assert veiled.count() == 40
    page.locator("select[name=benchmark]").select_option("starter-helpful")
    assert page.locator(".reveal").count() == 0


def test_long_text_is_scrolled_by_keyboard(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("select[name=benchmark]").select_option("starter-helpful")
    stops = page.locator(".text[tabindex='0']")
    assert set(stops.evaluate_all("parts => parts.map((part) => part.scrollHeight > part.clientHeight)")) == {True}
    assert stops.first.get_attribute("aria-label") == "Answer of dpo"
    page.locator("select[name=benchmark]").select_option("starter-harmful")
    assert stops.count() == 0, "nothing that is covered is a stop"
    page.get_by_label("show harmful text").check()
    assert stops.count() > 0


def test_on_paper(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run, color_scheme="dark")
    page.locator("select[name=benchmark]").select_option("starter-harmful")
    page.locator("select[name=change]").select_option("fixed")
    page.get_by_role("button", name="Show prompt and answers").nth(1).click()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("#printed").is_visible()
    listed = "Listed here: 20 of 90 prompts (Benchmark: starter-harmful; Change: fixed), of 556 in all."
    assert page.locator("#printed").inner_text() == listed
    covered, shown = page.locator("article").nth(0), page.locator("article").nth(1)
    assert covered.locator(".cover:visible").count() == 0, "nothing that is hidden on screen is in the printed file"
    assert "hidden" in covered.locator("p.paper").inner_text()
    assert shown.locator("p.paper").is_hidden()
    assert shown.locator(".cover:visible").count() == 5
    assert page.locator("#filters").is_hidden()
    assert page.locator(".reveal:visible").count() == 0
    whole = "parts => parts.every((part) => part.scrollHeight <= part.clientHeight + 1)"
    page.evaluate("document.querySelectorAll('.text').forEach((text) => text.append('long '.repeat(5000)))")
    assert shown.locator(".text").evaluate_all(whole), "long answers are not cut"
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(253, 252, 250)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#numbers details:not([open])").count() == 1, "as it was before printing"
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("delete window.DecompressionStream", "has no DecompressionStream"),
        ("const real = window.atob; window.atob = (text) => real(text).slice(0, 50)", "damaged"),
        ("window.atob = () => { throw new Error('not base64'); }", "damaged"),
    ],
)
def test_answers_that_cannot_be_unpacked_are_said_to_be_missing(
    run: ReportInput, browser: Any, tmp_path: Path, broken: str, told: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report(run), encoding="utf-8")
    context = browser.new_context()
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.add_init_script(broken)
    page.goto(path.as_uri())
    page.locator("#samples .missing").wait_for()
    assert told in page.locator("#samples").inner_text()
    assert "completions.jsonl" in page.locator("#samples").inner_text()
    assert page.locator("#filters").is_hidden()
    assert wrong == []
    context.close()


def test_names_in_the_picture_do_not_overlap_on_screen(run: ReportInput, visit: Callable[..., Any]) -> None:
    summaries = {}
    for index in range(14):
        summary = json.loads(json.dumps(run.summaries["dpo"]))
        for benchmark, metric in (("starter-harmful", "safe_rate"), ("starter-look-alike", "over_refusal_rate")):
            cell = summary["benchmarks"][benchmark]["judges"]["modes"]["metrics"][metric]
            cell["rate"] += (0.002 if metric == "safe_rate" else -0.003) * index
        summaries[f"WM_model-{index}00"] = summary
    crowd = replace(run, summaries={**run.summaries, **summaries})
    overlaps = """(svg) => {
      const boxes = [...svg.querySelectorAll(".name")].map((name) => name.getBBox());
      const meet = (one, two) => one.x < two.x + two.width && two.x < one.x + one.width
        && one.y + 3 < two.y + two.height && two.y + 3 < one.y + one.height;
      // 3: the box of a line of text has air above and below its letters
      const out = boxes.filter((box) => box.x < 0 || box.x + box.width > svg.viewBox.baseVal.width);
      const hits = boxes.filter((one, index) => boxes.slice(index + 1).some((two) => meet(one, two)));
      return [boxes.length, out.length, hits.length];
    }"""
    page = visit(crowd)
    assert page.locator(".wide .tradeoff").evaluate(overlaps) == [16, 0, 0]
    phone = visit(crowd, viewport={"width": 380, "height": 800}, is_mobile=True)
    assert phone.locator(".wide .tradeoff").is_hidden()
    assert phone.locator(".narrow .tradeoff").evaluate(overlaps) == [16, 0, 0]


def test_everything_can_be_reached_by_tab(run: ReportInput, visit: Callable[..., Any]) -> None:
    page = visit(run)
    page.locator("select[name=benchmark]").focus()
    seen = []
    for _ in range(16):
        seen.append(page.evaluate("document.activeElement.name || document.activeElement.className"))
        page.keyboard.press("Tab")
    assert seen[:7] == ["benchmark", "mode0", "mode1", "change", "category", "search", "opposed"], seen
    assert "link" in seen
    assert "reveal" in seen


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
    slowest = page.evaluate(
        """() => {
          const time = (control, value) => {
            const start = performance.now();
            control.value = value;
            control.dispatchEvent(new Event("input", { bubbles: true }));
            document.body.getBoundingClientRect(); // layout is part of the answer
            return performance.now() - start;
          };
          const search = document.querySelector("input[name=search]");
          const took = ["b", "bal", "cor", "zzzz", "fen1", ""].map((text) => time(search, text));
          const mode = document.querySelector("select[name=mode1]");
          return Math.max(...took, time(mode, mode.options[1].value), time(mode, ""));
        }"""
    )
    assert slowest <= 150, "also the first letter and a list, not the usual case alone"
