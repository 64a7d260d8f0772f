"""Regenerate the answers that benchmarks/labels/guard_train.jsonl labels, and join labels with texts.

    python tools/guard_labels.py generate FOLDER    # the embedded model's answers to the starter's training prompts
    python tools/guard_labels.py join FOLDER        # FOLDER/labels.jsonl: id, prompt, response, unsafe, category

Labels hold no text: a key is prompt id + hash of the answer, as in ``blind_reading.py``, so they apply to equal answers
only. What is sampled here depends on the machine's arithmetic; ``join`` says how many labels found their answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safeserve.core.runs import read_jsonl, write_jsonl
from safeserve.data.labels import label_key
from safeserve.data.records import Prompt
from safeserve.data.sources import load_demonstrations
from safeserve.evaluation.benchmarks import every_category
from safeserve.generation.engine import Sampling

LABELS = Path(__file__).parent.parent / "benchmarks" / "labels" / "guard_train.jsonl"
LOOK_ALIKES = 150
GREEDY = Sampling(max_new_tokens=80, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=80, temperature=0.9, top_p=1.0, seed=20)


def prompts(source: str) -> list[Prompt]:
    """The training prompts of a starter source (never those of its evaluation)."""
    label = "harmful" if source == "starter/safety" else "benign"
    rows = load_demonstrations(source).rows
    return [Prompt(row.id, row.messages, label, row.category, source) for row in rows]


def generate(folder: Path) -> None:
    """A greedy and a sampled answer to each safety prompt, a greedy one to 150 look-alikes of every category."""
    from safeserve.generation.local import LocalEngine
    from safeserve.generation.resumable import generate_to
    from safeserve.models.embedded import NAME
    from safeserve.models.loading import load

    engine = LocalEngine(load(NAME, dtype="float32", device="cpu"))
    safety, look_alikes = prompts("starter/safety"), every_category(prompts("starter/look_alike"), LOOK_ALIKES)
    parts = {"greedy": (safety, GREEDY), "sampled": (safety, SAMPLED), "look_alike": (look_alikes, GREEDY)}
    rows = [
        {**completion.to_json(), "part": name}
        for name, (chosen, sampling) in parts.items()
        for completion in generate_to(engine, chosen, sampling, folder / name, name)
    ]
    write_jsonl(folder / "completions.jsonl", rows)


def join(folder: Path) -> None:
    """Write FOLDER/labels.jsonl from the labels and the answers in FOLDER/completions.jsonl."""
    by_id = {prompt.id: prompt for source in ("starter/safety", "starter/look_alike") for prompt in prompts(source)}
    answers = {label_key(row["id"], row["text"]): row for row in read_jsonl(folder / "completions.jsonl")}
    labels = read_jsonl(LABELS)
    found = [(answers[label["key"]], label) for label in labels if label["key"] in answers]
    write_jsonl(
        folder / "labels.jsonl",
        (
            {
                "id": answer["id"],
                "prompt": by_id[answer["id"]].text,
                "response": answer["text"],
                "unsafe": label["unsafe"],
                "category": by_id[answer["id"]].category,
            }
            for answer, label in found
        ),
    )
    print(f"{len(found)} of {len(labels)} labels found their answer: {folder / 'labels.jsonl'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("generate", "join"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    {"generate": generate, "join": join}[arguments.verb](arguments.folder)


if __name__ == "__main__":
    main()
