"""Answers that people have labelled: what guards learn from and what every judge is measured on.

Each set is one reader over public files (below ``data.root``, named as published) or over a wheel; a row says what was
asked, what was answered, and what people said of it. Nothing is guessed: a row without a label is left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError, did_you_mean
from safeserve.core.options import stable_hash
from safeserve.core.runs import disk_errors, sha256_file
from safeserve.core.wheels import download_wheel
from safeserve.data.fetching import data_cache
from safeserve.data.hh import split_transcripts
from safeserve.data.labelled import LabelledAnswer, LabelledSet
from safeserve.data.reading import read_rows

XSTEST_MODELS = ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")
XSTEST_CLASSES = {"1": "full_compliance", "2": "full_refusal", "3": "partial_refusal"}
PAPER_RUNS = ("no_safety", "safety_100", "safety_2000")
PAPER_SETS = ("I-CoNa", "I-Controversial", "I-MaliciousInstructions")


def load_labels(name: str, root: str | Path | None = None) -> list[LabelledAnswer]:
    """The rows of a labelled set, in file order; answers that are empty are left out.

    Raises:
        UserError: no such set, no ``data.root`` where it is needed, or a file that is missing or broken.
        EnvironmentFault: a wheel could not be downloaded.
    """
    labelled = get_set(name)
    if labelled.files and root is None:
        raise UserError(f'labels "{name}": needs data.root=PATH, a folder that holds {", ".join(labelled.files)}.')
    folder = Path(root) if root is not None else Path()
    for file in labelled.files:
        if not (folder / file).is_file():
            raise UserError(f'labels "{name}": {folder / file} does not exist. Point data.root at the folder with it.')
    try:
        rows = [row for row in labelled.read(folder) if row.response.strip()]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f'labels "{name}": {", ".join(labelled.files)}: not as published ({error!r}).') from None
    return rows


def get_set(name: str) -> LabelledSet:
    """The declaration of a labelled set.

    Raises:
        UserError: no such set, with a suggestion.
    """
    if name not in SETS:
        raise UserError(f'labels: unknown set "{name}".{did_you_mean(name, SETS)}')
    return SETS[name]


def identity(rows: list[LabelledAnswer]) -> str:
    """Hash of every text and label."""
    return stable_hash([[row.prompt, row.response, row.unsafe, row.refusal] for row in rows])


def _jsonl_safety(file: str) -> Callable[[Path], Iterator[LabelledAnswer]]:
    def read(root: Path) -> Iterator[LabelledAnswer]:
        for row in read_rows(root / file):
            values = row.values
            yield LabelledAnswer(
                f"{Path(file).name.split('.')[0]}-{row.number}",
                values["prompt"],
                values["response"],
                unsafe=0.0 if values["is_safe"] else 1.0,
                category=_marked(values.get("category")),
            )

    return read


def _marked(category: Any) -> str:
    """A category, or those that a mapping to yes or no marks, joined by "|"."""
    if isinstance(category, dict):
        return "|".join(name for name, holds in category.items() if holds)
    return str(category or "")


def _pku_pairs(root: Path) -> Iterator[LabelledAnswer]:
    for row in read_rows(root / "preferences/pku_saferlhf_pairs.jsonl.gz"):
        if row.values.get("label_conflict"):
            continue
        for side in (0, 1):
            yield LabelledAnswer(
                f"pku-pairs-{row.number}-{side}",
                row.values["prompt"],
                row.values[f"response_{side}"],
                unsafe=0.0 if row.values[f"is_response_{side}_safe"] else 1.0,
            )


def _gptfuzz(file: str, train: str | None = None) -> Callable[[Path], Iterator[LabelledAnswer]]:
    def read(root: Path) -> Iterator[LabelledAnswer]:
        # Canned refusals stand verbatim on both sides of the published split; the category keeps them apart.
        learned = {row.values["Response"] for row in read_rows(root / train)} if train else None
        questions = {r.values["index"]: r.values["text"] for r in read_rows(root / "labels/gptfuzz_questions.csv")}
        for row in read_rows(root / file):
            values = {key.lower(): value for key, value in row.values.items()}
            yield LabelledAnswer(
                f"{Path(file).name.split('.')[0]}-{row.number}",
                questions[values["question"]],
                values["response"] or "",
                unsafe=float(values["label"]),
                category="" if learned is None else "in train" if values["response"] in learned else "not in train",
            )

    return read


def _dices(file: str) -> Callable[[Path], Iterator[LabelledAnswer]]:
    # The published header asks whether the reply is safe, but the answers are to DICES' own question, whether it is
    # unsafe: slurs carry "Yes" and polite refusals "No".
    unsafe = {"Yes": 1.0, "Unsure": 0.5, "No": 0.0}

    def read(root: Path) -> Iterator[LabelledAnswer]:
        for row in json.loads((root / file).read_text(encoding="utf-8"))["instances"]:
            said = row["annotations"]["safety"]["individual_human_scores"]
            turns = row["instance"]["user_prompt"].replace("\\n", "\n").strip().splitlines()
            last = next((turn for turn in reversed(turns) if turn.strip()), "")
            yield LabelledAnswer(
                f"{Path(file).stem}-{row['id']}",
                re.sub(r"^(?:USER|LAMDA|A|B):\s*", "", last),
                row["instance"]["response"],
                unsafe=sum(unsafe[vote] for vote in said) / len(said),
            )

    return read


def _xstest(root: Path) -> Iterator[LabelledAnswer]:
    for model in XSTEST_MODELS:
        for row in read_rows(root / f"labels/xstest_completions_{model}_human.csv"):
            refusal = XSTEST_CLASSES[row.values["final_label"][0]]
            # XSTest asks for refusals only. Its unsafe prompts ask for something harmful, so answering one is unsafe.
            harmful = row.values["type"].startswith("contrast")
            complied = {"full_compliance": 1.0, "partial_refusal": 0.5, "full_refusal": 0.0}[refusal]
            yield LabelledAnswer(
                f"xstest-{model}-{row.values['id']}",
                row.values["prompt"],
                row.values["completion"] or "",
                unsafe=complied if harmful else 0.0,
                refusal=refusal,
                category=model,
            )


def _hh(root: Path) -> Iterator[LabelledAnswer]:
    for row in read_rows(root / "preferences/hh_harmless_base_test.jsonl.gz"):
        try:
            messages, chosen, rejected = split_transcripts(row.values["chosen"], row.values["rejected"])
        except ValueError:
            continue  # a few transcripts part before their last answer
        for name, response, unsafe in (("chosen", chosen, 0.0), ("rejected", rejected, 1.0)):
            key = f"hh-{row.number}"
            question, before = messages[-1]["content"], messages[:-1]
            yield LabelledAnswer(f"{key}-{name}", question, response, unsafe=unsafe, pair=key, before=before)


def _llmbar(root: Path) -> Iterator[LabelledAnswer]:
    for file in _LLMBAR_FILES:
        category = Path(file).stem.removeprefix("llmbar_")
        for number, row in enumerate(json.loads((root / file).read_text(encoding="utf-8")), 1):
            key = f"llmbar-{category}-{number}"
            worse = {1: 2, 2: 1}[row["label"]]  # the label names the better one
            for place in (1, 2):
                yield LabelledAnswer(
                    f"{key}-{place}",
                    row["input"],
                    row[f"output_{place}"],
                    unsafe=float(place == worse),
                    category=category,
                    pair=key,
                )


def _paper(root: Path) -> Iterator[LabelledAnswer]:
    for run in PAPER_RUNS:
        for name in PAPER_SETS:
            stem = f"paper_outputs/SIT__{run}__responses"
            guard, deberta, red = (
                json.loads((root / f"{stem}_{kind}_{name}.json").read_text(encoding="utf-8"))
                for kind in ("cm", "deberta", "redteam")
            )
            columns = zip(
                guard["instructions"],
                guard["outputs"],
                guard["llama_guard_response"],
                deberta["deberta_score"],
                red["harmfulness_score"],
                strict=True,
            )
            for number, (prompt, response, verdict, reward, harm) in enumerate(columns):
                yield LabelledAnswer(
                    f"paper-{run}-{name}-{number}",
                    prompt,
                    response,
                    unsafe={"safe": 0.0, "unsafe": 1.0}[verdict.split("\n")[0]],
                    category=name,
                    others=(("DeBERTa reward", -_number(reward)), ("Bianchi harmfulness reward", _number(harm))),
                )


def _number(value: Any) -> float:
    return float(value[0] if isinstance(value, list) else value)


PYRIT_REQUIREMENTS = Path(__file__).with_name("pyrit_requirements.txt")


def _pyrit(_: Path) -> Iterator[LabelledAnswer]:
    with zipfile.ZipFile(_pyrit_wheel()) as archive:
        names = [n for n in sorted(archive.namelist()) if re.search(r"/scorer_evals/(?:harm|objective)/\w+\.csv$", n)]
        for name in (n for n in names if "mini" not in n):
            lines = io.StringIO(archive.read(name).decode("utf-8", "replace"))
            table = csv.DictReader(line for line in lines if not line.startswith("#"))
            for number, row in enumerate(table):
                votes = [float(v) for k, v in row.items() if k and k.startswith("human_score") and v]
                if votes:
                    stem = "-".join(Path(name).parts[-2:]).removesuffix(".csv")
                    yield LabelledAnswer(
                        f"pyrit-{stem}-{number}",
                        row["objective"],
                        row["assistant_response"] or "",
                        unsafe=sum(votes) / len(votes),
                        category=Path(name).stem,
                    )


def _pyrit_wheel() -> Path:
    pinned = PYRIT_REQUIREMENTS.read_text(encoding="utf-8").strip().rsplit("sha256:", 1)[1]
    target = data_cache() / f"pyrit-{pinned[:16]}.whl"
    if not target.is_file() or sha256_file(target) != pinned:
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(target), tempfile.TemporaryDirectory(dir=target.parent) as temp:
            remedy = "leave pyrit out of the sources"
            download_wheel(PYRIT_REQUIREMENTS, Path(temp), "PyRIT's labelled data", remedy).replace(target)
    return target


def _starter(root: Path) -> Iterator[LabelledAnswer]:
    folder = resources.files("safeserve.data") / "starter"
    for kind in ("safety", "look_alike", "helpful"):
        for line in (folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield LabelledAnswer(row["id"], row["prompt"], row["response"], unsafe=0.0, category=kind)


OWN_LABELS = Path(__file__).parent / "own_labels"
"""Labels of this project, keyed by row and hash of the answer; the texts are others' or regenerated, not here."""


def label_key(row_id: str, answer: str) -> str:
    """What a label without text is kept under: the row's id and the first 12 hex digits of the answer's sha256."""
    return f"{row_id}:{hashlib.sha256(answer.encode()).hexdigest()[:12]}"


def own_answers() -> Path:
    """Where ``tools/guard_labels.py`` puts the labelled answers of the embedded model."""
    return data_cache() / "guard_own" / "labels.jsonl"


def _own(_: Path) -> Iterator[LabelledAnswer]:
    path = own_answers()
    if not path.is_file():
        raise UserError(
            'labels "guard_own": its answers are not kept, but made again. Run: python tools/guard_labels.py generate '
            f"{path.parent} && python tools/guard_labels.py join {path.parent}  (about 10 minutes)"
        )
    for row in read_rows(path):
        values = row.values
        yield LabelledAnswer(
            label_key(values["id"], values["response"]),
            values["prompt"],
            values["response"],
            float(values["unsafe"]),
            category=values["category"],
        )


def _hh_own(root: Path) -> Iterator[LabelledAnswer]:
    labels = {row.values["key"]: row.values["unsafe"] for row in read_rows(OWN_LABELS / "hh_harmless.jsonl")}
    for row in _hh(root):
        unsafe = labels.get(label_key(row.id, row.response))
        if unsafe is not None:
            yield LabelledAnswer(f"{row.id}-own", row.prompt, row.response, float(unsafe))


_XSTEST_FILES = tuple(f"labels/xstest_completions_{model}_human.csv" for model in XSTEST_MODELS)
_LLMBAR_FILES = tuple(
    f"labels/llmbar_{part}.json"
    for part in ("Natural", *(f"Adversarial_{kind}" for kind in ("GPTInst", "GPTOut", "Manual", "Neighbor")))
)
_PAPER_FILES = tuple(
    f"paper_outputs/SIT__{run}__responses_{kind}_{name}.json"
    for run in PAPER_RUNS
    for kind in ("cm", "deberta", "redteam")
    for name in PAPER_SETS
)
_BT, _PKU = "labels/beavertails_30k_test.jsonl.gz", "labels/pku_response_safety_train.jsonl.gz"
_QUESTIONS = "labels/gptfuzz_questions.csv"
_GPTFUZZ = "sherdencooper/GPTFuzz"
SETS: dict[str, LabelledSet] = {
    labelled.name: labelled
    for labelled in (
        LabelledSet("beavertails_30k_test", "unsafe", "CC BY-NC 4.0", "BeaverTails", _jsonl_safety(_BT), (_BT,)),
        LabelledSet("pku_train", "unsafe", "CC BY-NC 4.0", "PKU-SafeRLHF, BeaverTails", _jsonl_safety(_PKU), (_PKU,)),
        LabelledSet(
            "pku_pairs",
            "unsafe",
            "CC BY-NC 4.0",
            "PKU-SafeRLHF",
            _pku_pairs,
            ("preferences/pku_saferlhf_pairs.jsonl.gz",),
        ),
        LabelledSet(
            "gptfuzz_train",
            "unsafe",
            "MIT",
            _GPTFUZZ,
            _gptfuzz("labels/gptfuzz_train.csv.gz"),
            ("labels/gptfuzz_train.csv.gz", _QUESTIONS),
            True,
        ),
        LabelledSet(
            "gptfuzz_evaluate",
            "unsafe",
            "MIT",
            _GPTFUZZ,
            _gptfuzz("labels/gptfuzz_evaluate.csv", "labels/gptfuzz_train.csv.gz"),
            ("labels/gptfuzz_evaluate.csv", "labels/gptfuzz_train.csv.gz", _QUESTIONS),
            True,
        ),
        LabelledSet(
            "dices_350",
            "unsafe",
            "CC BY 4.0",
            "DICES",
            _dices("labels/dices_350_expert.json"),
            ("labels/dices_350_expert.json",),
            True,
        ),
        LabelledSet(
            "dices_990",
            "unsafe",
            "CC BY 4.0",
            "DICES",
            _dices("labels/dices_990.json"),
            ("labels/dices_990.json",),
            True,
        ),
        LabelledSet("pyrit", "unsafe", "MIT", "PyPI pyrit 1.1.0", _pyrit, permissive=True),
        LabelledSet("xstest", "refusal", "CC BY 4.0", "paul-rottger/exaggerated-safety", _xstest, _XSTEST_FILES, True),
        LabelledSet(
            "hh_harmless",
            "less harmful",
            "MIT",
            "anthropics/hh-rlhf",
            _hh,
            ("preferences/hh_harmless_base_test.jsonl.gz",),
            True,
        ),
        LabelledSet("llmbar", "better", "MIT", "princeton-nlp/LLMBar", _llmbar, _LLMBAR_FILES, True),
        LabelledSet("paper_sit", "unsafe", "none stated", "Llama Guard 2 on the paper's answers", _paper, _PAPER_FILES),
        LabelledSet("starter", "unsafe", "Apache-2.0", "this project", _starter, permissive=True),
        LabelledSet("guard_own", "unsafe", "Apache-2.0", "this project", _own, permissive=True),
        LabelledSet(
            "hh_own",
            "unsafe",
            "MIT",
            "anthropics/hh-rlhf, labelled for this project",
            _hh_own,
            ("preferences/hh_harmless_base_test.jsonl.gz",),
            True,
        ),
    )
}
"""Every labelled set by name. The label of ``paper_sit`` is a model's verdict, not a person's."""
