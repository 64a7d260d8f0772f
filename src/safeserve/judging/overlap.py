"""How near an answer comes to a reference answer: BLEU, ROUGE-L, BERTScore. Values in [0, 1]."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar

from pydantic import Field

from safeserve.core.errors import UserError
from safeserve.core.options import stable_hash
from safeserve.data.records import Prompt
from safeserve.generation.engine import Completion
from safeserve.judging.hub_models import (
    HubModel,
    HubOptions,
    length_batches,
    load_hub,
    not_generated,
    shown,
    too_long,
)
from safeserve.judging.judge import NO_OPTIONS, NoOptions, Score

VERSION = "1"
BERTSCORE_LAYERS = {
    "bert-base-uncased": 9,
    "google-bert/bert-base-uncased": 9,
    "roberta-large": 17,
    "FacebookAI/roberta-large": 17,
    "microsoft/deberta-xlarge-mnli": 40,
}
"""The layers that Zhang et al. (2020, arXiv 1904.09675) and their package found best against people on WMT16."""


def needs(package: str, module: str, judge: str) -> None:
    """Raise the message about a missing extra before anything runs.

    Raises:
        UserError: ``package`` is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"judge {judge} needs {package}: pip install 'safeserve[metrics]'.")


def without_reference(prompt: Prompt, completion: Completion) -> Score | None:
    """The Score of what cannot be compared with a reference; None for what can."""
    if failed := not_generated(completion):
        return failed
    if not (prompt.reference or "").strip():
        return Score(None, None, reason="the prompt has no reference answer")
    return None


class OverlapJudge:
    """What BLEU and ROUGE-L share: one pure function of answer and reference from a kept library."""

    family: ClassVar[str]
    package: ClassVar[tuple[str, str]]
    """Name on PyPI and name to import."""
    Options = NoOptions

    def __init__(self, name: str, options: NoOptions = NO_OPTIONS) -> None:
        self.name = name
        needs(*self.package, name)
        self.identity = stable_hash([self.family, VERSION, version(self.package[0])])

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """One Score per item, in order; unscored without a reference. An empty answer is 0."""
        measure = self.measure()
        return [
            without_reference(prompt, completion) or Score(measure(completion.text, prompt.reference or ""), None)
            for prompt, completion in items
        ]

    def measure(self) -> Callable[[str, str], float]:
        """The function of answer and reference."""
        raise NotImplementedError


class Bleu(OverlapJudge):
    """Sentence BLEU by sacrebleu (effective order, exponential smoothing), divided by 100.

    The mean over answers is not corpus BLEU, which pools the n-grams of all answers first.
    """

    family = "bleu"
    package = ("sacrebleu", "sacrebleu")

    def measure(self) -> Callable[[str, str], float]:
        from sacrebleu import sentence_bleu

        # Equal texts come out a hair above 100.
        return lambda answer, reference: min(1.0, float(sentence_bleu(answer, [reference]).score) / 100)


class RougeL(OverlapJudge):
    """ROUGE-L F1 by Google's rouge-score, with stemming: the longest common subsequence of words."""

    family = "rouge_l"
    package = ("rouge-score", "rouge_score")

    def measure(self) -> Callable[[str, str], float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return lambda answer, reference: float(scorer.score(reference, answer)["rougeL"].fmeasure)


class BertScoreOptions(HubOptions):
    """Options of ``bertscore``."""

    model: str = "FacebookAI/roberta-large"
    """The encoder whose token vectors are compared."""
    layer: int | None = Field(None, ge=0)
    """Hidden layer that is read (0 is the embeddings); known for the encoders that the paper chose."""


class BertScore:
    """BERTScore F1 (Zhang et al. 2020), without idf weights and without rescaling to a baseline."""

    family = "bertscore"
    Options = BertScoreOptions

    def __init__(self, name: str, options: BertScoreOptions) -> None:
        self.name, self.options = name, options
        layer = options.layer if options.layer is not None else BERTSCORE_LAYERS.get(options.model)
        if layer is None:
            raise UserError(f"judge {name}: layer: no best layer is known for {options.model}. Name one.")
        self.layer = layer
        self.identity = stable_hash(["bertscore", VERSION, options.source, layer])

    @cached_property
    def hub(self) -> HubModel:
        """The encoder, loaded when first needed, with the layers above the one that is read left out."""
        hub = load_hub(self.options, "AutoModel")
        layers = hub.model.config.num_hidden_layers
        if self.layer > layers:
            raise UserError(f"judge {self.name}: layer: {self.options.model} has {layers} layers, not {self.layer}.")
        encoder: Any = getattr(hub.model, "encoder", None)
        if hasattr(encoder, "layer"):
            encoder.layer = encoder.layer[: self.layer]
        return hub

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        """One Score per item, in order; unscored without a reference or where a text is too long for the encoder."""
        scores: dict[int, Score] = {}
        pairs: dict[int, tuple[list[int], list[int]]] = {}
        for index, (prompt, completion) in enumerate(items):
            if unscored := without_reference(prompt, completion):
                scores[index] = unscored
                continue
            if not completion.text.strip():
                scores[index] = Score(0.0, None)
                continue
            answer, reference = self._ids(completion.text), self._ids(prompt.reference or "")
            longest = max(len(answer), len(reference))
            if longest > self.hub.limit:
                scores[index] = too_long(longest, self.hub.limit)
            else:
                pairs[index] = (answer, reference)
        if pairs:
            for index, value in zip(pairs, self._f1(list(pairs.values())), strict=True):
                scores[index] = Score(round(value, 6), None)
        return [scores[index] for index in range(len(items))]

    def _ids(self, text: str) -> list[int]:
        # These tokenizers spell a word at the very beginning in another way; the authors avoid it by a space.
        start = " " if self.hub.model.config.model_type in ("roberta", "gpt2") else ""
        return list(self.hub.tokenizer(start + self.hub.plain(text.strip()))["input_ids"])

    def _f1(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        texts = [ids for pair in pairs for ids in pair]
        lengths = [len(ids) for ids in texts]
        vectors: dict[int, Any] = {}
        batches = length_batches(lengths, self.options.batch_tokens, alone=self.hub.tokenizer.pad_token_id is None)
        for batch in shown(batches, lengths, f"judge {self.name}"):
            vectors.update(zip(batch, self._vectors([texts[i] for i in batch]), strict=True))
        return [greedy_f1(vectors[2 * row], vectors[2 * row + 1]) for row in range(len(pairs))]

    def _vectors(self, texts: Sequence[list[int]]) -> list[Any]:
        """Unit vectors of each text's tokens, the control tokens at both ends included."""
        import torch

        width, pad = max(map(len, texts)), self.hub.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=self.hub.device)
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=self.hub.device)
        with torch.inference_mode():
            out = self.hub.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = torch.nn.functional.normalize(out.hidden_states[self.layer].float(), dim=-1)
        return [state[: len(text)].cpu() for state, text in zip(states, texts, strict=True)]


def greedy_f1(answer: Any, reference: Any) -> float:
    """F1 of greedy matching: each token with its most similar token of the other text.

    The control tokens at both ends can be matched but do not count, as in the authors' package.

    Args:
        answer, reference: unit vectors of tokens, each [tokens, size], the two control tokens included.

    Returns:
        Harmonic mean of the mean best cosine over the answer's tokens (precision) and the reference's (recall), 0 where
        a text has no tokens or one of the means is not positive.
    """
    if min(len(answer), len(reference)) <= 2:
        return 0.0
    similarity = answer @ reference.T
    precision = float(similarity[1:-1].max(1).values.mean())
    recall = float(similarity[:, 1:-1].max(0).values.mean())
    if precision <= 0 or recall <= 0:
        return 0.0
    return min(1.0, 2 * precision * recall / (precision + recall))
