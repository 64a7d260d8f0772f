"""What "Safe to Serve" (arXiv 2412.00074) reports; facts, to be set beside what is measured here.

Shares are of 1, rewards in the judge's own units. Some of the paper's tables have faults, which :data:`FAULTS` names.
"""

from __future__ import annotations

from collections.abc import Mapping

SETS = ("I-CoNa", "I-MaliciousInstructions", "I-Controversial")


def _safe(*shares: float) -> dict[str, float]:
    return dict(zip(SETS, shares, strict=True))


SAFE_BY_DOSE: dict[int, dict[str, float]] = {
    0: _safe(0.41, 0.41, 0.45),
    100: _safe(0.65, 0.65, 0.70),
    300: _safe(0.81, 0.84, 0.85),
    500: _safe(0.85, 0.91, 0.92),
    1000: _safe(0.94, 0.92, 0.97),
    1500: _safe(0.89, 0.88, 0.97),
    2000: _safe(0.89, 0.92, 1.00),
}
"""SIT: shares of answers that Llama Guard 2 calls safe, by number of safety demonstrations."""
FIXED_BROKEN: dict[int, dict[str, tuple[int, int]]] = {
    100: dict(zip(SETS, ((48, 5), (31, 7), (13, 3)), strict=True)),
    2000: dict(zip(SETS, ((91, 5), (52, 1), (22, 0)), strict=True)),
}
"""Answers that became safe and unsafe from dose 0 to this dose, counted in the authors' published outputs."""
REWARDS_BY_DOSE: dict[str, dict[int, dict[str, float]]] = {
    "DeBERTa, median, higher is safer": {
        0: _safe(-3.65, -3.61, -2.37),
        100: _safe(-2.02, -2.38, -1.52),
        300: _safe(-1.47, -1.56, -1.02),
        500: _safe(-1.25, -1.54, -0.87),
        1000: _safe(-0.82, -1.16, -0.81),
        1500: _safe(-0.91, -1.38, -0.70),
        2000: _safe(-1.09, -1.48, -0.82),
    },
    "Bianchi et al., lower is safer": {
        0: _safe(2.92, 2.45, 2.65),
        100: _safe(1.35, 1.06, 1.43),
        300: _safe(0.38, 0.44, 0.35),
        500: _safe(0.27, 0.39, 0.21),
        1000: _safe(0.19, 0.27, 0.14),
        1500: _safe(0.19, 0.32, 0.10),
        2000: _safe(0.18, 0.29, 0.06),
    },
}
RAFT: dict[str, dict[str, float]] = {
    "before": _safe(0.399, 0.50, 0.425),
    "DeBERTa, B = 500": _safe(0.399, 0.54, 0.40),
    "own reward model, B = 500": _safe(0.343, 0.48, 0.375),
    "picks by people, B = 500": _safe(0.410, 0.59, 0.45),
    "DeBERTa, B = 100, 1 iteration": _safe(0.382, 0.525, 0.45),
    "DeBERTa, B = 100, 2 iterations": _safe(0.393, 0.53, 0.45),
    "DeBERTa, B = 100, 3 iterations": _safe(0.400, 0.53, 0.45),
    "DeBERTa, B = 100, 4 iterations": _safe(0.399, 0.54, 0.445),
}
"""Judged by Llama Guard 1."""
DPO = _safe(0.938, 0.95, 1.00)

HELPFUL = ("gpt2", "mean_bleu", "mean_rouge_l", "mean_bertscore", "BoolQ", "OpenBookQA", "PIQA", "one word", "nli")
"""Columns of helpfulness: a metric on Alpaca-test, a benchmark, or one that needs a judge of the paper's own."""


def _helpful(*values: float | None) -> dict[str, float]:
    return {name: value for name, value in zip(HELPFUL, values, strict=False) if value is not None}


HELPFUL_BY_DOSE: dict[int, dict[str, float]] = {
    0: _helpful(0.95, 0.038, 0.226, 0.195, 0.7109, 0.3007, 0.6038),
    100: _helpful(0.99, 0.037, 0.226, 0.193, 0.6983, 0.3344, 0.6199),
    300: _helpful(0.99, 0.037, 0.228, 0.198, 0.6965, 0.3562, 0.6207),
    500: _helpful(0.97, 0.036, 0.224, 0.193, 0.6941, 0.3595, 0.6364),
    1000: _helpful(0.96, 0.037, 0.224, 0.192, 0.7252, 0.3606, 0.6339),
    1500: _helpful(1.01, 0.037, 0.225, 0.198, 0.7014, 0.3648, 0.6415),
    2000: _helpful(1.03, 0.035, 0.223, 0.192, 0.7133, 0.3357, 0.6223),
}
HELPFUL_RAFT: dict[str, dict[str, float]] = {
    "before": _helpful(0.953, 0.038, 0.226, 0.195, 0.7109, 0.3007, 0.6038, 0.40, 0.7105),
    "DeBERTa, B = 500": _helpful(0.90, 0.034, 0.220, 0.190, 0.6983, 0.3344, 0.6199, 0.3833, 0.7128),
    "own reward model, B = 500": _helpful(0.93, 0.036, 0.224, 0.193, 0.6941, 0.3595, 0.6364, 0.40),
    "picks by people, B = 500": _helpful(0.853, 0.032, 0.221, 0.185, 0.6851, 0.3492, 0.6369, 0.3833, 0.7420),
    "DeBERTa, B = 100, 1 iteration": _helpful(0.93, 0.036, 0.220, 0.190, 0.6983, 0.3344, 0.6199, 0.3833),
    "DeBERTa, B = 100, 2 iterations": _helpful(0.93, 0.036, 0.224, 0.193, 0.6851, 0.3492, 0.6369, 0.3833),
    "DeBERTa, B = 100, 3 iterations": _helpful(0.92, 0.034, 0.220, 0.190, 0.6851, 0.3344, 0.6369, 0.3833),
    "DeBERTa, B = 100, 4 iterations": _helpful(0.90, 0.034, 0.220, 0.190, 0.6941, 0.3344, 0.6364, 0.3833),
}
HELPFUL_DPO = _helpful(None, None, None, None, 0.7010, 0.3562, 0.6339, 0.4333)

REWARD_BENCH: Mapping[str, tuple[float, float]] = {
    "refusals-offensive": (0.899, 0.23),
    "xstest-should-refuse": (0.844, 0.27),
    "xstest-should-respond": (0.884, 0.89),
    "do-not-answer": (0.402, 0.27),
    "refusals-dangerous": (0.374, 0.07),
}
"""Accuracy of the reward models on RewardBench's safety subsets: DeBERTa, and the authors' own on Gemma-2B."""
ERROR_TABLES: Mapping[str, tuple[int, int, int, int]] = {
    "what DeBERTa picked among 8 samples": (69, 4, 9, 18),
    "the model after one iteration": (68, 5, 6, 21),
}
"""RAFT on 100 prompts: safe to safe, safe to unsafe, unsafe to safe, unsafe to unsafe."""
DROPPED: Mapping[str, tuple[str, str]] = {
    "win rate by Mixtral-8x22B, dose 0 against 2000": (
        "50 : 27 as A and 28 : 50 as B; 30 : 22 and 26 : 34 with a reference; identical answers: 97 ties, 3 for A",
        "a pairwise judge: safeserve compare A B --win-rate JUDGE.yaml",
    ),
    "BERT classifier trained on Jigsaw, on HEx-PHI's categories": (
        "94 % in domain; .00 to .60 by category on HEx-PHI",
        "HEx-PHI, which is given out on request only",
    ),
}
"""What the authors tried and dropped: what it gave, and what it needs here."""
FAULTS = (
    "78 of 178 answers on I-CoNa were judged with the wrong instruction (RAFT and DPO)",
    "SIT was judged by Llama Guard 2, RAFT and DPO by Llama Guard 1, with other decoding",
    "19 to 90 % of the answers of a set were cut off",
    "rows of BoolQ, OpenBookQA and PIQA under RAFT and DPO repeat values of SIT",
    "52.5 % of 100 prompts is no count",
    "no intervals, one seed, no measure of over-refusal, and DeBERTa both as reward and as judge",
)
"""Found in the authors' public files."""
