"""Figures and tables for papers: what is drawn, the same bytes twice, and names that stay text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.runs import read_json, write_json, write_text
from safeserve.report.figures import _tabular, write_figures
from safeserve.report.words import latex


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


def names(files: list[Path]) -> set[str]:
    return {path.name for path in files}


def test_everything_that_the_run_can_show(run: Path, tmp_path: Path) -> None:
    files = write_figures(run, tmp_path / "out")
    pictures = ("trade_off", "rates", "modes", "training_train-dpo")
    assert names(files) == {f"{name}.{form}" for name in pictures for form in ("svg", "pdf", "png")} | {
        f"{name}.{suffix}" for name in ("rates", "comparison") for suffix in ("md", "tex")
    }
    text = " ".join(ElementTree.parse(tmp_path / "out" / "trade_off.svg").getroot().itertext())
    assert "dpo" in text
    assert "starter-look-alike" in text
    assert (tmp_path / "out" / "rates.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "out" / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for part in ("a", "b"):
        write_figures(run, tmp_path / part)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_tables_say_what_the_summary_says(run: Path, tmp_path: Path) -> None:
    write_figures(run, tmp_path, ["svg"])
    cell = read_json(run / "evals" / "dpo" / "summary.json")["benchmarks"]["starter-harmful"]["judges"]["modes"]
    rate = cell["metrics"]["safe_rate"]["rate"]
    assert f"dpo & starter-harmful & safe & {100 * rate:.1f} \\% &" in (tmp_path / "rates.tex").read_text()
    assert f"| dpo | starter-harmful | safe | {100 * rate:.1f} % |" in (tmp_path / "rates.md").read_text()


def test_doses_are_drawn_where_a_recipe_has_several(run: Path, tmp_path: Path) -> None:
    text = "train: {base: {method: sit, dose: 0}, dpo: {method: sit, dose: 400}, x: {method: dpo}}\n"
    write_text(run / "recipe.yaml", text)
    assert "doses.svg" in names(write_figures(run, tmp_path, ["svg"]))


def test_names_are_text_and_no_formula(run: Path, tmp_path: Path) -> None:
    for path in (run / "evals" / "dpo" / "summary.json", run / "compare" / "base--dpo.json", run / "verdict.json"):
        write_text(path, path.read_text().replace('"dpo"', '"$\\\\frac{1}{0$ <script>"'))
    write_figures(run, tmp_path, ["svg"])
    svg = (tmp_path / "trade_off.svg").read_text()
    assert "<script>" not in svg
    assert r"\$\textbackslash{}frac\{1\}\{0\$ \textless{}script\textgreater{}" in (tmp_path / "rates.tex").read_text()


def test_latex_by_hand() -> None:
    assert latex("50 % of a_b & {c}\n→ −1") == r"50 \% of a\_b \& \{c\} $\to$ $-$1"
    assert _tabular(("a", "b"), [("x", "1")], 1).splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"a & b \\", r"\midrule", r"x & 1 \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


def test_what_cannot_be_drawn(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'jpg'"):
        write_figures(run, tmp_path, ["jpg"])
    write_json(tmp_path / "empty" / "manifest.json", {})
    with pytest.raises(EvidenceError, match="nothing has been evaluated"):
        write_figures(tmp_path / "empty", tmp_path)
