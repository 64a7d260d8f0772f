"""Blind reading: draw answers of several models in random order without names, and compare labels with the rules.

    python tools/blind_reading.py draw SHEET RUN:MODEL [RUN:MODEL ...] --benchmark NAME=COUNT ...
    python tools/blind_reading.py agree LABELS RUN:MODEL [RUN:MODEL ...]
    python tools/blind_reading.py modes LABELS_FOLDER RUN:MODEL [RUN:MODEL ...] [--judge NAME ...]

``draw`` writes a sheet (JSON lines: key, prompt, answer) that names no model and no label of the rules. The reader
makes LABELS: one JSON line an answer with ``key``, ``mode`` and, for benign prompts, ``answers`` (does it answer what
was asked) and ``correct``. A key is prompt id + hash of the answer: labels hold no text, and apply to equal answers.

``modes`` judges the labelled answers anew, by default with the rules alone and with rules and guard, and prints per
judge a confusion table in Markdown: one row a mode by the reader, one column a mode by the judge.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeserve.core import agreement
from safeserve.core.runs import read_jsonl, write_jsonl
from safeserve.core.statistics import wilson
from safeserve.data.labels import label_key
from safeserve.data.records import Prompt
from safeserve.evaluation.folder import find_eval, read_eval
from safeserve.generation.engine import Completion
from safeserve.judging.registry import make_judge

SAFE_MODES = {"full_refusal", "partial_refusal", "safe_answer", "evasive", "degenerate", "empty"}


def answers(targets: list[str]) -> Iterator[dict[str, Any]]:
    """Every answer with what the rules said."""
    for target in targets:
        folder = read_eval(find_eval(target))
        for name, part in folder.benchmarks.items():
            for (prompt_id, k), completion in part.completions.items():
                score = part.scores["refusal"][prompt_id, k]
                prompt = part.prompts[prompt_id]
                yield {
                    "key": label_key(prompt_id, completion.text),
                    "benchmark": name,
                    "target": target,
                    "prompt": prompt.text,
                    "answer": completion.text,
                    "harmful": prompt.label == "harmful",
                    "rules": score.label,
                }


def draw(sheet: Path, targets: list[str], counts: dict[str, int], seed: int) -> None:
    chance = random.Random(seed)
    chosen = []
    for target in targets:
        rows = list(answers([target]))
        for name, count in counts.items():
            chosen += chance.sample([row for row in rows if row["benchmark"] == name], count)
    chance.shuffle(chosen)
    write_jsonl(sheet, ({"key": row["key"], "prompt": row["prompt"], "answer": row["answer"]} for row in chosen))
    print(f"{sheet}: {len(chosen)} answers")


def agree(labels: Path, targets: list[str]) -> int:
    read = {row["key"]: row for row in read_jsonl(labels)}
    found = [(row, read[row["key"]]) for row in answers(targets) if row["key"] in read]
    print(f"{len(found)} labelled answers found in these runs; {len(read)} labels in {labels}")
    if not found:
        return 1
    modes = agreement.kappa([row["rules"] for row, _ in found], [label["mode"] for _, label in found])
    print(f"modes: agreement {share([row['rules'] == label['mode'] for row, label in found])}, kappa {modes:.2f}")
    harmful = [(row, label) for row, label in found if row["harmful"]]
    benign = [(row, label) for row, label in found if not row["harmful"]]
    if harmful:
        rules = [str(row["rules"] in SAFE_MODES) for row, _ in harmful]
        reader = [str(label["mode"] in SAFE_MODES) for _, label in harmful]
        print(f"harmful prompts, safe or not: n {len(harmful)}, kappa {agreement.kappa(rules, reader):.2f}")
    if benign:
        rules = [str("refusal" in row["rules"]) for row, _ in benign]
        reader = [str("refusal" in label["mode"]) for _, label in benign]
        print(f"benign prompts, refused or not: n {len(benign)}, kappa {agreement.kappa(rules, reader):.2f}")
    for target in targets:
        for name in dict.fromkeys(row["benchmark"] for row, _ in found):
            part = [label for row, label in found if row["target"] == target and row["benchmark"] == name]
            if not part:
                continue
            print(f"{target} {name}: n {len(part)}, modes {dict(Counter(label['mode'] for label in part))}")
            if any(row["harmful"] for row, _ in found if row["benchmark"] == name):
                print(f"  safe by reading {share([label['mode'] in SAFE_MODES for label in part])}")
                continue
            answered = [label for label in part if label["mode"] == "helpful_answer"]
            if answered:
                print(f"  of {len(answered)} answered: answer what was asked {share([x['answers'] for x in answered])}")
                print(f"  of {len(answered)} answered: and are correct {share([x['correct'] for x in answered])}")
    print("where rules and reader differ:")
    confusion = Counter((row["rules"], label["mode"]) for row, label in found if row["rules"] != label["mode"])
    for (rules_mode, mode), count in confusion.most_common():
        print(f"  rules {rules_mode}, reader {mode}: {count}")
    return 0


def labelled(folder: Path, targets: list[str]) -> list[tuple[Prompt, Completion, str]]:
    """Every labelled answer found in these runs, once, with the reader's mode."""
    read = {
        row["key"]: row["mode"] for path in sorted(folder.glob("*.jsonl")) for row in read_jsonl(path) if "mode" in row
    }
    found = {}
    for target in targets:
        for part in read_eval(find_eval(target)).benchmarks.values():
            for (prompt_id, _), completion in part.completions.items():
                if (key := label_key(prompt_id, completion.text)) in read:
                    found[key] = (part.prompts[prompt_id], completion, read[key])
    print(f"{len(found)} of {len(read)} labelled answers are in these runs.\n")
    return list(found.values())


def confusion(folder: Path, targets: list[str], judges: list[str]) -> None:
    rows = labelled(folder, targets)
    for name in judges:
        scores = make_judge(name).score([(prompt, completion) for prompt, completion, _ in rows])
        for label in ("harmful", "benign"):
            part = [(s, mode) for s, (prompt, _, mode) in zip(scores, rows, strict=True) if prompt.label == label]
            unscored = sum(score.value is None for score, _ in part)
            pairs = [(mode, str(score.label)) for score, mode in part if score.value is not None]
            if not pairs:
                continue
            print(f"{name}, {label} prompts (n = {len(pairs)}, unscored {unscored}): ", end="")
            print(f"same mode {share([a == b for a, b in pairs])}, kappa {kappa(pairs)}", end="; ")
            if label == "harmful":
                found = [(str(a not in SAFE_MODES), str(b not in SAFE_MODES)) for a, b in pairs]
                caught = [b == "True" for a, b in found if a == "True"]
                cleared = [b == "False" for a, b in found if a == "False"]
                print(f"unsafe or not: kappa {kappa(found)}, of unsafe found {share(caught)}, ", end="")
                print(f"of safe cleared {share(cleared)}")
            else:
                print(f"refused or not: kappa {kappa([(str('refusal' in a), str('refusal' in b)) for a, b in pairs])}")
            print("\n" + table(Counter(pairs)))


def kappa(pairs: list[tuple[str, str]]) -> str:
    return f"{agreement.kappa([a for a, _ in pairs], [b for _, b in pairs]):.2f}"


def table(counts: Counter[tuple[str, str]]) -> str:
    rows = sorted({mode for mode, _ in counts})
    columns = sorted({mode for _, mode in counts})
    lines = ["| reader \\ judge | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {row} | " + " | ".join(str(counts[row, column] or "") for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def share(hits: list[bool]) -> str:
    interval = wilson(sum(hits), len(hits))
    return f"{sum(hits)}/{len(hits)} = {sum(hits) / len(hits):.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "agree", "modes"))
    parser.add_argument("file", type=Path)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--benchmark", action="append", default=[], metavar="NAME=COUNT")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--judge", action="append", metavar="NAME", help="modes: refusal and modes where not given")
    options = parser.parse_args()
    if options.what == "agree":
        return agree(options.file, options.targets)
    if options.what == "modes":
        confusion(options.file, options.targets, options.judge or ["refusal", "modes"])
        return 0
    counts = {name: int(count) for name, count in (item.split("=") for item in options.benchmark)}
    draw(options.file, options.targets, counts, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
