"""The arithmetic of the benchmarks: ratios, tuning, operations, agreement, ticks of the plot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from benchmarks.common import Disagreement, Run, achieved, alternate, compared, ratio, retuned, tuned
from benchmarks.decoding import first_difference, near_ties, until_stop
from benchmarks.flops import Weights, dpo_flops, generation_flops, sit_flops
from benchmarks.plot import Panel, decades, short, steps, svg
from benchmarks.profile import by_kind, kind_of

from benchmarks import common, scoring, synthetic
from safeserve.core.runs import read_json

SMALL = Weights(body=100, head=10, adapter=5)


def test_ratio_is_of_neighbouring_runs() -> None:
    found = ratio([2.0, 6.0, 3.0], [1.0, 2.0, 2.0])
    assert found == {"median": 2.0, "low": 1.5, "high": 3.0, "n": 3}
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_sides_take_turns_and_are_compared_with_ours() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Any:
        def run() -> Run:
            order.append(name)
            return Run(10, seconds, {"loss": 0.5, "losses": [0.5]})

        return run

    runs = alternate({"safeserve": side("safeserve", 1.0), "peer": side("peer", 4.0)}, 2)
    assert order == ["safeserve", "peer"] * 2
    result = compared(runs)
    assert result["ratios"] == {"peer": {"median": 4.0, "low": 4.0, "high": 4.0, "n": 2}}
    assert result["sides"]["peer"]["rate"] == 2.5
    assert result["sides"]["peer"]["runs"][0] == {"units": 10, "seconds": 4.0, "loss": 0.5}
    reached = achieved(result, flops=2e9, peaks=[{"square": 40.0}, {"square": 50.0}])
    assert reached["gflop_per_s"] == {"safeserve": 20.0, "peer": 5.0}
    assert reached["share_of_peak"] == {"safeserve": 0.4, "peer": 0.1}


def test_a_peak_from_right_before_a_run_is_that_run_s() -> None:
    peaks = iter([25.0, 100.0, 20.0])
    runs = alternate({"safeserve": lambda: Run(10, 1.0)}, 3, lambda: next(peaks))
    reached = achieved(compared(runs), flops=2e9, peaks=[{"square": 1000.0}])
    assert reached["share_of_peak"] == {"safeserve": 0.8}  # the median of 20/25, 20/100 and 20/20


def test_tuning_takes_the_fastest_and_keeps_what_failed() -> None:
    def measure(settings: dict[str, Any]) -> Run:
        if settings["batch"] == 0:
            raise ValueError("no rows")
        return Run(settings["batch"], 2.0)

    found = tuned({"a": {"batch": 2}, "b": {"batch": 6}, "c": {"batch": 0}}, measure)
    assert (found["best"], found["settings"]) == ("b", {"batch": 6})
    assert found["tried"]["b"]["rate"] == 3.0
    assert found["tried"]["c"] == {"settings": {"batch": 0}, "error": "ValueError: no rows"}
    with pytest.raises(Disagreement, match="none"):
        tuned({"c": {"batch": 0}}, measure)


def test_a_further_round_forgets_no_faster_one() -> None:
    rates = iter([5.0, 4.0, 3.0, 4.5])
    first = tuned({"a": {"batch": 1}, "b": {"batch": 2}}, lambda settings: Run(next(rates), 1.0))
    found = retuned(first, {"a": {"batch": 1}, "c": {"batch": 3}}, lambda settings: Run(next(rates), 1.0))
    assert (found["best"], found["settings"]) == ("a", {"batch": 1})
    assert {name: one["rate"] for name, one in found["tried"].items()} == {"a": 5.0, "b": 4.0, "c": 4.5}


def test_tuning_does_not_swallow_a_disagreement() -> None:
    def measure(settings: dict[str, Any]) -> Run:
        raise Disagreement("another loss")

    with pytest.raises(Disagreement, match="another loss"):
        tuned({"a": {}}, measure)


def test_saved_results_name_the_machine_and_no_paths(tmp_path: Path) -> None:
    options = argparse.Namespace(out=tmp_path / "x.json", quick=True, data=Path("/data"), child=None, repeats=5)
    common.save("some-work", {"value": 1 / 3, "rows": [2 / 3]}, options)
    found = read_json(tmp_path / "x.json")
    assert found["benchmark"] == "some-work"
    assert found["arguments"] == {"quick": True, "repeats": 5}
    assert found["value"] == 0.333333
    assert found["rows"] == [0.666667]
    assert found["machine"]["versions"]["torch"] == torch.__version__


def test_operations_by_hand() -> None:
    assert SMALL.forward(3, 2) == 2 * 100 * 3 + 2 * 10 * 2
    assert SMALL.train(3, 2) == 2 * 640 + 6 * 5 * 3
    # A pair: 9 tokens, 5 of them in answers. Reference 1900, training 2 · 1900 + 270.
    assert dpo_flops(SMALL, [(4, 3, 2)]) == 1900 + 3800 + 270
    assert sit_flops(SMALL, [(4, 3)]) == 2 * (1400 + 60) + 6 * 5 * 7
    # Two prompts of 4 and 2; answers of 3 and 1, and of 2: fed are 6 + 2 + 0 + 1, the head sees 6.
    assert generation_flops(SMALL, [4, 2], [[3, 1], [2]]) == 2 * 100 * 9 + 2 * 10 * 6


def test_weights_of_a_model_by_hand(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    folder = synthetic.save_model("tiny", tmp_path)
    found = Weights.of(AutoModelForCausalLM.from_pretrained(folder), lora_rank=2)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    assert (found.body, found.head) == (2 * layer, 259 * 32)
    assert found.adapter == 2 * 2 * (64 + 48 + 48 + 64 + 3 * 96)
    assert found.shapes == ((32, 32), (32, 16), (32, 64), (64, 32), (32, 259))
    assert found.gemms(7)[0] == (7, 32, 32)
    headless = Weights.of(AutoModel.from_pretrained(folder), lora_rank=2)
    assert (headless.body, headless.head, headless.shapes) == (found.body, 0, found.shapes[:-1])


def test_answers_end_with_their_end_token() -> None:
    assert until_stop([5, 6, 2, 0, 0], {2}) == [5, 6, 2]
    assert until_stop([5, 6], {2}) == [5, 6]


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1], [1, 2]) == 1


def test_answers_may_part_at_a_near_tie_only() -> None:
    def logits(gap: float) -> Any:
        return lambda ids: torch.tensor([0.0, 1.0, 1.0 - gap, 0.5])

    prompts, mine, theirs = {"p": [9], "q": [9]}, {"p": [[3, 1]], "q": [[1]]}, {"p": [[3, 2]], "q": [[1]]}
    (tie,) = near_ties(prompts, mine, theirs, logits(5e-4))
    assert (tie["id"], tie["position"]) == ("p", 1)
    with pytest.raises(Disagreement, match="part at token 1"):
        near_ties(prompts, mine, theirs, logits(5e-3))
    with pytest.raises(Disagreement, match="goes on"):
        near_ties({"p": [9]}, {"p": [[3]]}, {"p": [[3, 2]]}, logits(0.0))


@pytest.mark.parametrize(
    ("top", "expected"),
    [(1.0, [0, 0.25, 0.5, 0.75, 1.0]), (7, [0, 2, 4, 6, 8]), (1000, [0, 250, 500, 750, 1000])],
)
def test_ticks_are_round_and_reach_the_top(top: float, expected: list[float]) -> None:
    assert steps(top) == pytest.approx(expected)


def test_decades_enclose() -> None:
    assert decades(0.5, 300) == [0.1, 1, 10, 100, 1000]
    assert decades(10, 10) == [10, 100]


def test_short_numbers() -> None:
    assert [short(value) for value in (0.5, 12, 1000, 4096, 16384, 100_000)] == ["0.5", "12", "1k", "4k", "16k", "100k"]


def test_plot_is_an_svg_with_every_point() -> None:
    rising = Panel("rate & more", "tokens", ((10, 1.0), (100, 2.0), (1000, 4.0)))
    tree = ElementTree.fromstring(svg([rising, Panel("log", "n", ((1, 1.0), (10, 100.0)), log=True)]))
    space = "{http://www.w3.org/2000/svg}"
    circles = list(tree.iter(f"{space}circle"))
    assert len(circles) == 5
    xs, ys = ([float(circle.attrib[axis]) for circle in circles[:3]] for axis in ("cx", "cy"))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])
    assert ys[0] - ys[1] == pytest.approx((ys[1] - ys[2]) / 2, abs=0.1)
    assert "rate & more" in {text.text for text in tree.iter(f"{space}text")}


def test_answers_to_score_share_prompts() -> None:
    options = argparse.Namespace(quick=True, data=None)
    eight = scoring.answers(options, 16, 8)
    assert [len([item for item in eight if item[0] == prompt]) for prompt in dict(eight)] == [8, 8]
    assert len({answer for _, answer in eight}) == 16
    assert len(dict(scoring.answers(options, 16, 1))) == 16


class Reads:
    """Both sides of a scorer that differ by ``apart``."""

    device, network = "cpu", None

    def __init__(self, apart: float) -> None:
        self.apart = apart

    def ours(self, items: Any) -> list[float]:
        return [float(len(answer)) for _, answer in items]

    def peer(self, items: Any, token_budget: int) -> list[float]:
        return [value + self.apart for value in self.ours(items)]

    def tokens(self, items: Any) -> int:
        return len(items)


def test_scores_must_agree() -> None:
    items = [("a", "b"), ("a", "cd")]
    assert scoring.check(Reads(2.0**-20), items, 64) == {"apart": 2.0**-20, "answers": 2}
    for apart in (1e-3, float("nan")):
        with pytest.raises(Disagreement, match="nothing is timed"):
            scoring.check(Reads(apart), items, 64)


def test_operators_are_sorted_by_kind_of_work() -> None:
    kinds = [kind_of(f"aten::{name}") for name in ("mm", "addmm_", "bmm", "_softmax", "copy_", "mul_", "add_")]
    assert kind_of("_AttendBackward").startswith("outside torch")
    products, attention, copies, rest = "products with the weights", "attention", "copies and look-ups", "element-wise"
    assert kinds[:5] == [products, products, attention, attention, copies]
    assert all(kind.startswith(rest) for kind in kinds[5:])


def test_what_no_operator_spent_is_spent_outside() -> None:
    found = by_kind([("aten::mm", 3.0), ("aten::addmm", 2.0), ("aten::mul", 1.0)], wall=10.0)
    assert list(found.values()) == [5.0, 4.0, 1.0]
    assert list(found)[1].startswith("outside torch")
    assert by_kind([("aten::mm", 3.0)], wall=2.0)["outside torch (Python, files)"] == 0.0
