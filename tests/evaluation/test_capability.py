"""Multiple choice by likelihood gives lm-eval's accuracy on the same rows; lm-eval's troubles end in one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.data.sources import load_prompts
from safeserve.evaluation.capability import _cells, run_lm_eval
from safeserve.generation.choices import ChoiceEngine
from safeserve.generation.engine import Sampling
from safeserve.judging.exact_match import ExactMatchJudge

WORDS = ("ice", "rain", "a hot stove", "wind", "the moon", "salt water", "an old tree", "glass", "fire", "sand")


def questions(n: int) -> list[dict[str, Any]]:
    """Rows as OpenBookQA publishes them, with choices of different lengths and no pattern in the answers."""
    return [
        {
            "id": f"q{i}",
            "question_stem": f"Which of these is number {i} ",  # ends with a blank, which goes to the choice
            "choices": {
                "text": [WORDS[(i * step + step) % 10] for step in (1, 3, 7, 9)],
                "label": ["A", "B", "C", "D"],
            },
            "answerKey": "ABCD"[(i * i + i // 3) % 4],
        }
        for i in range(n)
    ]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of lm-eval like its openbookqa, over a local file ``rows.jsonl``."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions(24)))
    path = tmp_path / "own_task.yaml"
    path.write_text(
        f"""
task: own_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: question_stem
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
doc_to_choice: "{{{{choices.text}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    return path


def test_accuracy_by_likelihood_is_lm_evals(tiny: Callable[..., Any], task: Path, monkeypatch: Any) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task.parent / "cache"))
    loaded = tiny()
    prompts = load_prompts(task.parent / "rows.jsonl", label="benign").rows
    completions = list(ChoiceEngine(loaded).generate(prompts, Sampling()))
    by_id = {completion.id: completion for completion in completions}
    scores = ExactMatchJudge().score([(prompt, by_id[prompt.id]) for prompt in prompts])
    accuracy = sum(score.value or 0.0 for score in scores) / len(scores)
    assert len({completion.text for completion in completions}) > 1, "the model must not always say the same"
    cells = run_lm_eval(loaded, [str(task)])["tasks"]["own_questions"]
    assert cells["n"] == 24
    assert cells["acc"] == pytest.approx(accuracy)


def test_the_command_keeps_lm_evals_numbers_and_refuses_what_it_would_ignore(
    cli_here: Callable[..., Any], tiny_folder: Path, task: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(task.parent / "cache"))
    common = ("eval", tiny_folder, "--lm-eval", task, "--limit", "4", "--name", "mine")
    ran = cli_here(*common)
    assert ran.code == 0, ran.stderr
    assert "own_questions  n 4  acc " in ran.stdout
    path = task.parent / "runs" / "mine" / "evals" / "base" / "lm_eval.json"
    assert json.loads(path.read_text())["tasks"]["own_questions"]["n"] == 4
    again = cli_here(*common)
    assert (again.code, "--redo" in again.stderr) == (2, True)
    ignored = cli_here(*common, "--seed", "3", "--skip-missing")
    assert ignored.code == 2
    assert "goes without --seed, --skip-missing" in ignored.stderr


def test_a_group_of_tasks_has_its_numbers_too() -> None:
    """lm-eval counts samples of tasks only; the form of its answer for mmlu and the like."""
    outcome = {
        "results": {"group": {"sample_len": 30, "acc,none": 0.5, "alias": "g"}, "task": {"acc,none": 0.4}},
        "n-samples": {"task": {"original": 40, "effective": 30}},
        "versions": {"task": 1},
    }
    assert _cells(outcome, "group") == {"n": 30, "version": None, "acc": 0.5}
    assert _cells(outcome, "task") == {"n": 30, "version": 1, "acc": 0.4}


def test_choices_are_those_of_plain_arithmetic(tiny: Callable[..., Any], task: Path) -> None:
    """The chosen one has the highest summed log-probability in a forward pass of its own, without any batching."""
    import torch

    loaded = tiny()
    prompts = load_prompts(task.parent / "rows.jsonl", label="benign").rows[:4]
    for completion, prompt in zip(ChoiceEngine(loaded).generate(prompts, Sampling()), prompts, strict=True):
        totals = []
        context = loaded.chat.tokenizer(prompt.meta["context"].rstrip())["input_ids"]
        for choice in prompt.meta["choices"]:
            ids = loaded.chat.tokenizer(f"{prompt.meta['context']} {choice['text']}")["input_ids"]
            with torch.inference_mode():
                logprobs = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            totals.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(len(context), len(ids))))
        best = max(range(len(totals)), key=totals.__getitem__)
        assert completion.id == prompt.id
        assert completion.text == prompt.meta["choices"][best]["label"]
        assert completion.logprob_sum == pytest.approx(max(totals), abs=1e-2)


def test_a_choice_that_does_not_fit_is_no_answer(tiny: Callable[..., Any], tmp_path: Path) -> None:
    row = questions(1)[0] | {"question_stem": "word " * 60}  # 300 bytes, and the model has 256 positions
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    prompts = load_prompts(tmp_path / "rows.jsonl", label="benign").rows
    (completion,) = ChoiceEngine(tiny()).generate(prompts, Sampling())
    assert completion.finish_reason == "error"
    (score,) = ExactMatchJudge().score([(prompts[0], completion)])
    assert score.value is None


def test_tasks_that_cannot_be_run_say_why(tiny: Callable[..., Any], tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("lm_eval")
    import lm_eval.tasks

    class Index:
        """Reading lm-eval's own takes seconds."""

        def __init__(self, include_defaults: bool) -> None:
            assert include_defaults
            self.all_tasks = ["boolq", "piqa"]

    loaded = tiny()
    with monkeypatch.context() as patched:
        patched.setattr(lm_eval.tasks, "TaskManager", Index)
        with pytest.raises(UserError, match=r'no task "piqua".*Did you mean "piqa"'):
            run_lm_eval(loaded, ["piqua"])
    (tmp_path / "code.yaml").write_text("task: t\ndoc_to_text: !function utils.run\n")
    with pytest.raises(UserError, match="not valid YAML"):
        run_lm_eval(loaded, [str(tmp_path / "code.yaml")])
    (tmp_path / "away.yaml").write_text(
        f"task: away\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/none.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: q\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n"
    )
    with pytest.raises(EnvironmentFault, match="cannot be had"):
        run_lm_eval(loaded, [str(tmp_path / "away.yaml")])
