"""Groups of prompts that say alike things, found without looking at which were answered unsafely.

TF-IDF of words (without function words), reduced to its leading dimensions (latent semantic analysis), then Ward's
hierarchical clustering. Because the grouping does not see the outcome, whether a cluster holds more unsafe prompts than
chance can be tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safeserve.core.statistics import wilson
from safeserve.evaluation.analysis_rows import PromptRow
from safeserve.evaluation.analysis_terms import FUNCTION_WORDS, distinguishing
from safeserve.judging.text import normalise, words

FEWEST, MOST = 40, 5000
"""Numbers of prompts between which clusters are made: fewer show no groups, more take too much memory."""
CLUSTER_SIZE = 15
"""Prompts a cluster on average."""
MOST_CLUSTERS = 30
DIMENSIONS = 40
EXEMPLARS = 5

Floats = NDArray[np.float64]


def why_none(count: int) -> str | None:
    """Why no clusters are made of so many prompts; None where they are."""
    if count < FEWEST:
        return f"{count} prompts are fewer than {FEWEST}, which show no groups"
    if count > MOST:
        return f"{count:,} prompts are more than {MOST:,}, which take too much memory"
    return None


def cluster(texts: Sequence[str]) -> tuple[NDArray[np.intp], Floats] | None:
    """Number of each text's cluster (from 0) and the vectors they were made from; None with too few or too many texts.

    Returns:
        Arrays of shape [texts] and [texts, dimensions]; the vectors have length 1, or 0 for a text of no known word.
    """
    if why_none(len(texts)):
        return None
    from scipy.cluster.hierarchy import fcluster, linkage

    vectors = embed(texts)
    count = min(max(2, round(len(texts) / CLUSTER_SIZE)), MOST_CLUSTERS)
    numbers = fcluster(linkage(vectors, method="ward"), count, criterion="maxclust")
    return np.asarray(numbers - 1, dtype=np.intp), vectors


def embed(texts: Sequence[str]) -> Floats:
    """Vectors of shape [texts, dimensions] whose inner products are likeness in what the texts are about."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    counted = [Counter(word for word in words(normalise(text)) if word not in FUNCTION_WORDS) for text in texts]
    spread = Counter(word for counts in counted for word in counts)
    known = {word: i for i, word in enumerate(sorted(word for word, n in spread.items() if 1 < n < len(texts)))}
    cells = [(row, known[word], n) for row, counts in enumerate(counted) for word, n in counts.items() if word in known]
    if len(known) < 2:
        return np.zeros((len(texts), 1))
    rows, columns, counts = (np.array(part) for part in zip(*cells, strict=True))
    idf = np.log((1 + len(texts)) / (1 + np.array([spread[word] for word in known]))) + 1
    weights = (1 + np.log(counts)) * idf[columns]
    lengths = np.sqrt(np.bincount(rows, weights=weights**2, minlength=len(texts)))
    matrix = csr_matrix((weights / lengths[rows], (rows, columns)), shape=(len(texts), len(known)))
    size = min(DIMENSIONS, min(matrix.shape) - 1)
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))  # else every call starts somewhere else
    left, values, _ = svds(matrix, k=size, v0=start)
    vectors = np.asarray(left * values)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12))


def describe(prompts: Sequence[PromptRow], numbers: NDArray[np.intp], vectors: Floats) -> list[dict[str, Any]]:
    """The clusters that hold an unsafe prompt, the one with the most first.

    Each has ``name`` (its leading terms), ``cluster`` (its number), ``prompts``, ``unsafe``, ``rate``, ``ci95``,
    ``terms`` that tell it from the others, and ``exemplars``: ids of its unsafe prompts, the most typical first.
    """
    found = []
    for number in np.unique(numbers):
        inside = np.flatnonzero(numbers == number).tolist()
        unsafe = [i for i in inside if prompts[i].unsafe]
        if not unsafe:
            continue
        interval = wilson(len(unsafe), len(inside))
        texts = [prompts[i].text for i in inside]
        typical = vectors[unsafe] @ vectors[unsafe].mean(axis=0)
        order = [unsafe[i] for i in np.argsort(-typical, kind="stable")]
        told = distinguishing(
            texts, [row.text for row, n in zip(prompts, numbers, strict=True) if n != number], about=True
        )
        found.append(
            {
                "name": cluster_name(int(number), told),
                "cluster": int(number),
                "prompts": len(inside),
                "unsafe": len(unsafe),
                "rate": len(unsafe) / len(inside),
                "ci95": [interval.low, interval.high],
                "terms": told,
                "exemplars": [prompts[i].id for i in order[:EXEMPLARS]],
            }
        )
    return sorted(found, key=lambda cell: (-cell["unsafe"], -cell["rate"], cell["cluster"]))


def cluster_name(number: int, told: Sequence[dict[str, Any]]) -> str:
    """The three leading terms, or the number of a cluster that none distinguishes."""
    return ", ".join(str(one["term"]) for one in told[:3]) or f"no. {number}"
