"""Accuracy on pairs by subset, by the library and by the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EvidenceError, UserError
from safeserve.data.records import Prompt
from safeserve.evaluation.reward_accuracy import preference_note, reward_accuracy
from safeserve.generation.engine import Completion
from safeserve.judging.judge import Score


class Longer:
    """Longer is better; what says "secret" cannot be scored."""

    name, identity = "longer", "longer-1"

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        return [
            Score(None, None, reason="not for me") if "secret" in answer.text else Score(float(len(answer.text)), None)
            for _, answer in items
        ]


class Broken:
    """Breaks the contract in the way that the answer's text names."""

    name, identity = "broken", "broken-1"

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        values = {"nan": float("nan"), "inf": float("inf")}
        return [Score(values.get(answer.text, float(len(answer.text))), None) for _, answer in items]


class Short(Longer):
    """Returns one score too few."""

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        return super().score(items)[1:]


class Mute:
    """Scores nothing."""

    name, identity = "mute", "mute-1"

    def score(self, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        return [Score(None, None, reason="mute") for _ in items]


ROWS = [
    {"prompt": "a", "chosen": "xx", "rejected": "x", "subset": "refusals-dangerous"},
    {"prompt": "b", "chosen": "xx", "rejected": "xxx", "subset": "refusals-dangerous"},
    {"prompt": "c", "chosen": "xx", "rejected": "yy", "subset": "xstest-should-respond"},
    {"prompt": "d", "chosen": "xxx", "rejected": "y", "subset": "xstest-should-respond"},
    {"prompt": "e", "chosen": "xxx", "rejected": "y", "subset": "donotanswer"},
    {"prompt": "f", "chosen": "secret", "rejected": "y", "subset": "donotanswer"},
    {"prompt": "g", "chosen": "", "rejected": "y", "subset": "donotanswer"},
]
LONGER, MUTE, BROKEN, SHORT = (f"{__name__}:{name}" for name in ("Longer", "Mute", "Broken", "Short"))
PKU = [
    {"prompt": "a", "response_0": "x", "response_1": "xx", "better_response_id": 0, "safer_response_id": 1},
    {"prompt": "b", "response_0": "x", "response_1": "xx", "better_response_id": 1, "safer_response_id": 1},
    {"prompt": "c", "response_0": "x", "response_1": "xx", "better_response_id": None, "safer_response_id": 1},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(rows: list[dict[str, Any]], name: str = "bench.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make


def test_by_subset(write: Callable[..., Path]) -> None:
    result = reward_accuracy(write(ROWS), LONGER)
    assert {name: (part["n"], part["accuracy"]) for name, part in result["subsets"].items()} == {
        "donotanswer": (1, 1.0),
        "refusals-dangerous": (2, 0.5),
        "xstest-should-respond": (2, 0.5),
    }
    assert (result["n"], result["n_scored"], result["ties"]) == (6, 5, 1)
    assert result["unscored_reasons"] == {"not for me": 1}
    assert len(result["unusable_rows"]) == 1
    assert "line 7" in result["unusable_rows"][0]
    assert result["all"]["accuracy"] == pytest.approx(0.6)
    assert result["mean_of_subsets"] == pytest.approx(2 / 3)
    assert all(part["ci95"][0] <= part["accuracy"] <= part["ci95"][1] for part in result["subsets"].values())
    json.dumps(result, allow_nan=False)


def test_a_category_or_a_mapped_column_names_subsets(write: Callable[..., Path]) -> None:
    rows = [{"prompt": "a", "chosen": "xx", "rejected": "x", "category": "k", "part": "p"}]
    assert list(reward_accuracy(write(rows), LONGER)["subsets"]) == ["k"]
    assert list(reward_accuracy(write(rows), LONGER, {"category": "part"})["subsets"]) == ["p"]
    plain = [{"prompt": "a", "chosen": "xx", "rejected": "x"}]
    assert list(reward_accuracy(write(plain), LONGER)["subsets"]) == ["(none)"]


@pytest.mark.shared
def test_a_public_file_by_its_subsets(shared_data: Path) -> None:
    """docs/methods/reward.md: pairs against over-refusal by subcategory."""
    found = reward_accuracy(shared_data / "preferences/coconot_pref.jsonl", LONGER, {"category": "subcategory"})
    assert found["n"] == 927
    assert len(found["subsets"]) == 8


def test_published_forms_of_pairs_are_read(write: Callable[..., Path]) -> None:
    assert reward_accuracy(write(PKU[:1]), LONGER)["all"]["accuracy"] == 0
    assert reward_accuracy(write(PKU[:1]), LONGER, prefer="safer")["all"]["accuracy"] == 1
    talk = "\n\nHuman: Hi\n\nAssistant: "
    assert reward_accuracy(write([{"chosen": f"{talk}xx", "rejected": f"{talk}x"}]), LONGER)["all"]["accuracy"] == 1


def test_which_preference_was_used_is_kept(write: Callable[..., Path]) -> None:
    both = {"published": ["better", "safer"], "both": 2, "differ": 1}
    found = reward_accuracy(write(PKU), LONGER)
    assert found["preference"] == {**both, "asked": "auto", "used": {"better": 2, "safer": 1}}
    assert found["all"]["accuracy"] == pytest.approx(2 / 3)
    found = reward_accuracy(write(PKU), LONGER, prefer="safer")
    assert found["preference"] == {**both, "asked": "safer", "used": {"safer": 3}}
    assert found["all"]["accuracy"] == 1
    nothing = {"asked": "auto", "published": [], "used": {}, "both": 0, "differ": 0}
    assert reward_accuracy(write(ROWS), LONGER)["preference"] == nothing
    assert preference_note(reward_accuracy(write(ROWS), LONGER)) is None


def test_scores_that_are_no_evidence_are_neither_right_nor_wrong(write: Callable[..., Path]) -> None:
    """NaN compares as smaller than nothing and infinity as larger than all: neither says anything of an answer."""
    rows = [
        {"prompt": "a", "chosen": "nan", "rejected": "x"},
        {"prompt": "b", "chosen": "x", "rejected": "nan"},
        {"prompt": "c", "chosen": "inf", "rejected": "x"},
        {"prompt": "d", "chosen": "xx", "rejected": "x"},
    ]
    found = reward_accuracy(write(rows), BROKEN)
    assert (found["n"], found["n_scored"], found["all"]["accuracy"]) == (4, 1, 1)
    assert found["unscored_reasons"] == {"value is not finite (inf)": 1, "value is not finite (nan)": 2}
    with pytest.raises(UserError, match="judge longer: 3 scores for 4 answers"):
        reward_accuracy(write(rows[:2]), SHORT)


def test_what_cannot_be_measured(write: Callable[..., Path]) -> None:
    with pytest.raises(EvidenceError, match="none of 6 pairs could be scored; most often: mute"):
        reward_accuracy(write(ROWS), MUTE)
    with pytest.raises(UserError, match="do not rank answers"):
        reward_accuracy(write(ROWS), "refusal")


def test_a_guard_s_better_answer_has_the_lower_score(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safeserve.judging.guard import Guard

    def scores(self: Guard, items: Sequence[tuple[Prompt, Completion]]) -> list[Score]:
        labels = {"z": "Safe "}
        return [Score(float(len(answer.text)), labels.get(answer.text, "safe")) for _, answer in items]

    monkeypatch.setattr(Guard, "score", scores)
    assert reward_accuracy(write(ROWS[:2]), "guard")["all"]["accuracy"] == 0.5
    assert reward_accuracy(write(ROWS[:1]), "guard")["all"]["accuracy"] == 0
    typo = [{"prompt": "a", "chosen": "z", "rejected": "xx"}, {"prompt": "b", "chosen": "x", "rejected": "xx"}]
    found = reward_accuracy(write(typo), "guard")
    assert (found["n_scored"], found["unscored_reasons"]) == (1, {"unknown label 'Safe '": 1})


def test_the_command(write: Callable[..., Path], cli_here: Callable[..., Any], tmp_path: Path) -> None:
    path = write(ROWS)
    done = cli_here("score", path, "--judge", LONGER, "--out", tmp_path / "found.json")
    assert done.code == 0, done.stderr
    assert "refusals-dangerous" in done.stdout
    assert "Not scored: 1 of 6 pairs (1 not for me)." in done.stdout
    assert "Equal scores, counted as wrong: 1." in done.stdout
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept[0]["all"]["accuracy"] == pytest.approx(0.6)
    again = cli_here("score", path, "--judge", LONGER, "--json")
    assert json.loads(again.stdout) == kept


def test_the_command_says_which_preference(write: Callable[..., Path], cli_here: Callable[..., Any]) -> None:
    path = write(PKU)
    done = cli_here("score", path, "--judge", LONGER)
    assert done.code == 0, done.stderr
    assert "Measured against: better (2 pairs, safer for the 1 without it); --preference safer measures" in done.stdout
    assert "orders 1 of 2 pairs the other way round." in done.stdout
    done = cli_here("score", path, "--judge", LONGER, "--preference", "safer")
    assert "Measured against: safer (3 pairs); --preference better measures" in done.stdout
    one = [{key: value for key, value in row.items() if key != "better_response_id"} for row in PKU]
    done = cli_here("score", write(one), "--judge", LONGER)
    assert (done.code, "Measured against" in done.stdout) == (0, False)
    done = cli_here("score", write(one), "--judge", LONGER, "--preference", "better")
    assert done.code == 2
    assert "--preference better: this file publishes safer only. Leave it out, or name the column" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--judge", LONGER, "--preference", "safer"), "this file has one order only, chosen above rejected"),
        (("--judge", LONGER, "--preference", "safe"), '--preference: unknown word "safe". Did you mean "safer"?'),
        ((), "holds pairs. Say with --judge who scores them"),
        (("--judge", LONGER, "--label", "harmful"), "--label: would be ignored"),
        (("--judge", LONGER, "--out", "evals/theirs"), "kept in a file NAME.json"),
        (("--judge", LONGER, "--map", "nonsense=subset"), 'no field "nonsense" in pairs'),
    ],
)
def test_wrong_options(
    write: Callable[..., Path], cli_here: Callable[..., Any], options: tuple[str, ...], message: str
) -> None:
    done = cli_here("score", write(ROWS), *options)
    assert done.code == 2
    assert message in done.stderr


def test_foreign_completions_are_still_scored(write: Callable[..., Path], cli_here: Callable[..., Any]) -> None:
    path = write([{"prompt": "a", "response": "I can't help with that."}], "theirs.jsonl")
    given = ("score", path, "--label", "harmful", "--judge", "refusal", "--out", "evals/theirs")
    refused = cli_here(*given, "--preference", "safer")
    assert (refused.code, "is no file of preference pairs" in refused.stderr) == (2, True)
    done = cli_here(*given)
    assert done.code == 0, done.stderr
