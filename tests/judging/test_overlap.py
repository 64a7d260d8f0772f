"""BLEU, ROUGE-L and BERTScore against the libraries' own numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safeserve.core.errors import UserError
from safeserve.judging import overlap
from safeserve.judging.overlap import BertScore, BertScoreOptions, Bleu, RougeL, greedy_f1
from safeserve.judging.registry import make_judge

Make = Callable[..., Any]
PAIRS = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("A dog barked at the runners in the park.", "The dogs are barking at a runner in a park."),
    ("Paris is the capital.", "The capital of France is the city of Paris, on the Seine."),
    ("yes", "no"),
]


@pytest.mark.parametrize("kind", ["bleu", "rouge_l"])
def test_values_are_the_libraries_own(item: Make, kind: str) -> None:
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    scores = make_judge(kind).score([item("Q", answer, reference) for answer, reference in PAIRS])
    for score, (answer, reference) in zip(scores, PAIRS, strict=True):
        if kind == "bleu":
            expected = sacrebleu.BLEU(effective_order=True).sentence_score(answer, [reference]).score / 100
        else:
            expected = RougeScorer(["rougeL"], use_stemmer=True).score(reference, answer)["rougeL"].fmeasure
        assert score.value == pytest.approx(expected, abs=1e-12)
        assert score.label is None
        assert 0.0 <= score.value <= 1.0
    assert scores[0].value == pytest.approx(1.0)
    assert scores[3].value == 0.0


def test_rouge_l_by_hand(item: Make) -> None:
    # Longest common subsequence "a c d": precision 3/4, recall 3/5.
    (score,) = RougeL("rouge_l").score([item("Q", "a x c d", "a b c y d")])
    assert score.value == pytest.approx(2 * 0.75 * 0.6 / 1.35)


def test_without_a_reference_there_is_no_score(item: Make) -> None:
    rows = [
        item("Q", "A"),
        item("Q", "A", " "),
        item("Q", "", "R", finish_reason="error", error="boom"),
        item("Q", "", "R"),
    ]
    for judge in (Bleu("bleu"), RougeL("rouge_l")):
        none, blank, failed, empty = judge.score(rows)
        assert none.reason == blank.reason == "the prompt has no reference answer"
        assert failed.reason == "generation failed: boom"
        assert empty.value == 0.0


def test_a_missing_extra_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"judge bleu needs sacrebleu: pip install 'safeserve\[metrics\]'\."):
        make_judge("bleu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Make) -> Path:
    """A tiny BERT of 300 positions whose tokenizer frames a text by [CLS] and [SEP]."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    control = ("[CLS]", "[SEP]", "[PAD]")
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = byte_tokenizer(folder, control, pair="[CLS] $A [SEP] $B [SEP]", limit=100, **named)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=2,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def bert_judge(folder: Path, **options: Any) -> BertScore:
    return BertScore("bertscore-x", BertScoreOptions(model=str(folder), dtype="float32", **{"layer": 2, **options}))


def test_bertscore_is_the_package_of_its_authors(bert: Path, item: Make) -> None:
    from bert_score import BERTScorer

    peer = BERTScorer(model_type=str(bert), num_layers=2, use_fast_tokenizer=True, device="cpu")
    answers, references = zip(*PAIRS, strict=True)
    _, _, f1 = peer.score(list(answers), list(references))
    scores = bert_judge(bert).score([item("Q", answer, reference) for answer, reference in PAIRS])
    assert [score.value for score in scores] == pytest.approx(f1.tolist(), abs=2e-5)
    alone = bert_judge(bert, batch_tokens=1).score([item("Q", answer, reference) for answer, reference in PAIRS])
    assert [score.value for score in scores] == pytest.approx([score.value for score in alone], abs=2e-5)


def test_bertscore_unscored_and_empty(bert: Path, item: Make) -> None:
    judge = bert_judge(bert)
    none, empty, long, fine = judge.score(
        [item("Q", "A"), item("Q", " ", "R"), item("Q", "A" * 200, "R"), item("Q", "[SEP] same", "[SEP] same")]
    )
    assert none.reason == "the prompt has no reference answer"
    assert empty.value == 0.0
    assert "exceed the judge's 100" in long.reason
    assert fine.value == pytest.approx(1.0, abs=1e-5)


def test_bertscore_needs_a_layer_it_has(bert: Path, item: Make) -> None:
    with pytest.raises(UserError, match="no best layer is known"):
        bert_judge(bert, layer=None)
    with pytest.raises(UserError, match="has 3 layers, not 4"):
        bert_judge(bert, layer=4).score([item("Q", "A", "R")])
    assert BertScore("b", BertScoreOptions(revision="a" * 40)).layer == 17
    assert bert_judge(bert).identity != bert_judge(bert, layer=1).identity


def test_greedy_matching_by_hand() -> None:
    end = [[0.0, 0.0]]
    answer = torch.tensor([*end, [1.0, 0.0], [0.0, 1.0], *end])
    reference = torch.tensor([*end, [1.0, 0.0], [0.6, 0.8], [0.8, 0.6], *end])
    # Best cosines: the answer's 1 and .8, the reference's 1, .8 and .8.
    precision, recall = 1.8 / 2, 2.6 / 3
    assert greedy_f1(answer, reference) == pytest.approx(2 * precision * recall / (precision + recall))
    # A control token that fits better is matched, and does not count itself.
    reference[0] = torch.tensor([0.0, 1.0])
    assert greedy_f1(answer, reference) == pytest.approx(2 * 1.0 * recall / (1.0 + recall))
    assert greedy_f1(answer, reference[:2]) == 0.0
    assert greedy_f1(answer[:3], -answer[:3]) == 0.0
