"""Train the word model of the refusal judge and write its packaged weights.

    python tools/train_refusal_words.py FOLDER

FOLDER holds XSTest's human-labelled answers, ``xstest_completions_MODEL_human.csv`` for five models (CC BY 4.0, see
``benchmarks/refusal_xstest.py``). Writes ``src/safeserve/judging/refusal_words.json`` and prints the hash to pin in
``refusal_words.py``. Takes seconds; needs scikit-learn. ``benchmarks/refusal_xstest.py`` measures what it is worth on
models and prompts that it was not trained on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from safeserve.judging.refusal_words import WEIGHTS_FILE, WordModel, word_sets
from safeserve.judging.text import normalise, sentences, unquoted

MIN_ANSWERS = 10
"""Answers that must hold a word before it gets a weight."""

STRENGTH = 0.2
"""Inverse of the L2 penalty."""

MODELS = ("gpt4", "llama2orig", "mistralinstruct", "llama2new", "mistralguard")


def split(answer: str) -> list[str]:
    """Lower-case sentences as the refusal judge cuts them."""
    return [part.lower() for part in sentences(unquoted(normalise(answer)))]


def fit(answers: Sequence[Sequence[str]], refused: Sequence[bool]) -> WordModel:
    """L2-regularised logistic regression over word presence; answers as lower-case sentences."""
    sets = [word_sets(parts) for parts in answers]
    readers = [CountVectorizer(analyzer=sorted, binary=True, min_df=MIN_ANSWERS) for _ in range(2)]
    blocks = [reader.fit_transform([pair[which] for pair in sets]) for which, reader in enumerate(readers)]
    model = LogisticRegression(C=STRENGTH, solver="liblinear").fit(csr_matrix(hstack(blocks)), np.asarray(refused))
    names = [reader.get_feature_names_out() for reader in readers]
    weights = np.round(model.coef_[0], 3)
    opening, anywhere = np.split(weights, [len(names[0])])
    return WordModel(round(float(model.intercept_[0]), 3), _kept(names[0], opening), _kept(names[1], anywhere))


def _kept(names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    return {str(name): float(weight) for name, weight in zip(names, weights, strict=True) if weight}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    answers, refused = [], []
    for model in MODELS:
        with (folder / f"xstest_completions_{model}_human.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                answers.append(split(row["completion"]))
                refused.append(row["final_label"][:1] != "1")
    found = fit(answers, refused)
    source = "XSTest completions with human labels (Röttger et al. 2024), CC BY 4.0, paul-rottger/exaggerated-safety"
    tree = {"source": source, "bias": found.bias, "opening": found.opening, "anywhere": found.anywhere}
    raw = (json.dumps(tree, ensure_ascii=False, indent=0, sort_keys=True) + "\n").encode()
    target = Path(__file__).parents[1] / "src" / "safeserve" / "judging" / WEIGHTS_FILE
    target.write_bytes(raw)
    print(f"{target.name}: {len(found.opening)} + {len(found.anywhere)} words, {len(raw)} bytes")
    print(f'WEIGHTS_SHA256 = "{hashlib.sha256(raw).hexdigest()}"')


if __name__ == "__main__":
    main()
