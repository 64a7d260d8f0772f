"""What "Safe to Serve" (arXiv 2412.00074) reports; facts, to be set beside what is measured here.

Shares of answers that Llama Guard calls safe, by benchmark. The paper's own tables; see docs/results.md for what is
wrong with some of them (a shifted index, two versions of the judge).
"""

from __future__ import annotations

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
RAFT: dict[str, dict[str, float]] = {
    "before": _safe(0.399, 0.50, 0.425),
    "DeBERTa, B = 500": _safe(0.399, 0.54, 0.40),
    "own reward model, B = 500": _safe(0.343, 0.48, 0.375),
    "picks by people, B = 500": _safe(0.410, 0.59, 0.45),
    "DeBERTa, B = 100, 4 iterations": _safe(0.399, 0.54, 0.445),
}
DPO = _safe(0.938, 0.95, 1.00)

HELPFUL = ("mean_bleu", "mean_rouge_l", "BoolQ", "OpenBookQA", "PIQA")
_HELPFUL: dict[int, tuple[float, ...]] = {
    0: (0.038, 0.226, 0.7109, 0.3007, 0.6038),
    100: (0.037, 0.226, 0.6983, 0.3344, 0.6199),
    300: (0.037, 0.228, 0.6965, 0.3562, 0.6207),
    500: (0.036, 0.224, 0.6941, 0.3595, 0.6364),
    1000: (0.037, 0.224, 0.7252, 0.3606, 0.6339),
    1500: (0.037, 0.225, 0.7014, 0.3648, 0.6415),
    2000: (0.035, 0.223, 0.7133, 0.3357, 0.6223),
}
HELPFUL_BY_DOSE = {dose: dict(zip(HELPFUL, numbers, strict=True)) for dose, numbers in _HELPFUL.items()}
HELPFUL_DPO = {"BoolQ": 0.7010, "OpenBookQA": 0.3562, "PIQA": 0.6339}
