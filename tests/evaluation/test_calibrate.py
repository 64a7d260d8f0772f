"""calibrate: what is counted, kept and refused, with small judges whose scores are known."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from safeserve.core.errors import EvidenceError, UserError
from safeserve.core.runs import write_jsonl
from safeserve.data.labelled import LabelledAnswer
from safeserve.data.labels import label_key, load_labels
from safeserve.data.labels_file import labelled_answers
from safeserve.data.records import Prompt, user
from safeserve.evaluation.blind_labels import join_labels
from safeserve.evaluation.calibrate import calibrate
from safeserve.evaluation.summary import summarise
from safeserve.generation.engine import Completion
from safeserve.judging.calibration import measure, question_for
from safeserve.judging.calibration_store import in_use, kept, score_labelled
from safeserve.judging.judge import Score
from safeserve.judging.llm import PairVerdict
from safeserve.report.calibration import calibration_view


class Words:
    """A guard that reads P(unsafe) from the answer itself ("0.7 ..."); what is no number it cannot score."""

    def __init__(self, name: str = "guard-words") -> None:
        self.name, self.identity, self.read = name, f"identity-of-{name}", 0

    def score(self, items):
        self.read += len(items)
        scores = []
        for _, completion in items:
            try:
                p = float(completion.text.split()[0])
            except ValueError:
                scores.append(Score(None, None, "no number"))
            else:
                scores.append(Score(p, "unsafe" if p > 0.5 else "safe"))
        return scores


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFESERVE_CACHE", str(tmp_path / "cache"))


def labelled(tmp_path, rows):
    path = tmp_path / "mine.jsonl"
    write_jsonl(path, ({"prompt": p, "response": r, "label": label} for p, r, label in rows))
    return path


# Unsafe: .9, .8, .2 (missed). Safe: .1, .3, .6 (flagged wrongly), and one that cannot be scored.
ROWS = [
    ("a", "0.9 x", "unsafe"),
    ("a", "0.1 x", "safe"),
    ("b", "0.8 x", "unsafe"),
    ("c", "0.2 x", "unsafe"),
    ("d", "0.3 x", "safe"),
    ("e", "0.6 x", "safe"),
    ("f", "none", "safe"),
]


def test_counts_by_hand(tmp_path):
    result = calibrate(Words(), str(labelled(tmp_path, ROWS)), quiet=True)
    assert (result["n"], result["n_scored"], result["n_unscored"], result["n_positive"]) == (7, 6, 1, 3)
    assert result["unscored_reasons"] == {"no number": 1}
    assert result["n_prompts"] == 5
    assert result["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert result["specificity"]["value"] == pytest.approx(2 / 3)
    assert result["precision"]["value"] == pytest.approx(2 / 3)
    assert result["kappa"]["value"] == pytest.approx(1 / 3)
    # .9 and .8 beat all three, .2 beats .1 alone
    assert result["auroc"]["value"] == pytest.approx(7 / 9)
    assert sum(part["n"] for part in result["reliability"]) == 6
    assert 0 < result["ece"] < 1
    json.dumps(result, allow_nan=False)


def test_scores_are_kept_and_an_interrupted_run_goes_on(tmp_path):
    rows = labelled_answers(str(labelled(tmp_path, ROWS)))
    first, second = Words(), Words()
    scores = score_labelled(first, rows, "unsafe", quiet=True)
    assert score_labelled(second, rows, "unsafe", quiet=True) == scores
    assert (first.read, second.read) == (7, 1)  # what could not be scored is not kept: a server may be back
    (path,) = (tmp_path / "cache" / "calibration" / "scores").glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:9])  # killed in the middle of a line
    assert score_labelled(second, rows, "unsafe", quiet=True) == scores
    assert second.read == 1 + 3


def test_a_perfect_judge_is_not_certain(tmp_path):
    rows = [(f"q{i}", f"{i % 2 * 0.8 + 0.1} x", "unsafe" if i % 2 else "safe") for i in range(20)]
    result = calibrate(Words(), str(labelled(tmp_path, rows)), quiet=True)
    assert result["sensitivity"]["value"] == 1.0
    assert 0.6 < result["sensitivity"]["ci95"][0] < 0.8


def test_a_reward_ranks_from_the_other_end_and_gives_no_verdict(tmp_path):
    result = calibrate(Words("reward-words"), str(labelled(tmp_path, ROWS)), quiet=True)
    assert result["auroc"]["value"] == pytest.approx(2 / 9)
    assert result["sensitivity"] is None
    assert result["ece"] is None


def refusals(*pairs):
    rows = [LabelledAnswer(f"i{i}", f"q{i}", "x", refusal=human) for i, (human, _) in enumerate(pairs)]
    modes = {"full_compliance": "helpful_answer"}
    return rows, [Score(0.0, modes.get(said, said), detail={"refusal": said}) for _, said in pairs]


def test_three_classes_and_refused_at_all():
    rows, scores = refusals(
        ("full_refusal", "full_refusal"),
        ("full_refusal", "partial_refusal"),
        ("partial_refusal", "full_compliance"),
        ("full_compliance", "full_compliance"),
    )
    assert question_for("refusal", rows) == "refusal"
    result = measure("refusal", rows, scores, "refusal")
    assert result["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert result["specificity"]["value"] == 1.0
    confusion = result["classes"]["confusion"]
    assert confusion["full_refusal"] == {"full_compliance": 0, "full_refusal": 1, "partial_refusal": 1}
    # observed 2/4; by chance (2*1 + 1*1 + 1*2)/16
    assert result["classes"]["kappa"]["value"] == pytest.approx((2 / 4 - 5 / 16) / (1 - 5 / 16))


def test_published_judges_on_the_same_answers():
    rows = [
        LabelledAnswer(f"i{i}", f"q{i}", "x", unsafe=float(i % 2), others=(("Peer", float(i % 2)),)) for i in range(6)
    ]
    result = measure("guard-x", rows, [Score(0.5, "safe")] * 6, "unsafe")
    assert result["peers"]["Peer"]["value"] == 1.0
    assert result["auroc"]["value"] == 0.5


def test_evenly_split_raters_have_given_no_label(tmp_path, monkeypatch):
    rows = [LabelledAnswer(f"i{i}", f"q{i}", f"0.{i} x", unsafe=u) for i, u in enumerate((0.0, 0.5, 1.0, 0.6), 1)]
    monkeypatch.setattr("safeserve.evaluation.calibrate.labelled_answers", lambda *_: rows)
    result = calibrate(Words(), "anything", quiet=True)
    assert (result["n"], result["n_positive"]) == (3, 2)


def test_nothing_to_tell_apart(tmp_path):
    with pytest.raises(EvidenceError, match="not both kinds"):
        calibrate(Words(), str(labelled(tmp_path, [("a", "0.5", "safe")])), quiet=True)
    with pytest.raises(EvidenceError, match="Most frequent reason: no number"):
        calibrate(Words(), str(labelled(tmp_path, [("a", "x", "safe"), ("b", "y", "unsafe")])), quiet=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "answer": "b", "label": "safe"}, r'row 1: no "response" .found: prompt, answer, label'),
        ({"prompt": "a", "response": "b", "label": "meh"}, 'label "meh" is unknown. Use unsafe or safe'),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, row, message):
    path = tmp_path / "bad.jsonl"
    write_jsonl(path, [row])
    with pytest.raises(UserError, match=message):
        labelled_answers(str(path))


def test_sets_by_name_are_checked():
    with pytest.raises(UserError, match="Did you mean"):
        labelled_answers("xtest")
    with pytest.raises(UserError, match="no such file"):
        labelled_answers("nowhere.jsonl")
    with pytest.raises(UserError, match="does not exist"):
        calibrate(Words(), "hh_harmless", root="/nonexistent", quiet=True)
    with pytest.raises(UserError, match="correct no rate"):
        calibrate(Words(), "hh_harmless", root="/nonexistent", use=True, quiet=True)


@pytest.mark.parametrize(
    ("judge", "label", "options", "message"),
    [
        ("guard-words", "refusal", {}, "do not answer what judge guard-words can be asked: unsafe"),
        ("guard-words", "unsafe", {"question": "refusal"}, "cannot be asked"),
        ("modes-words", "unsafe", {"question": "refusal"}, "do not answer"),
        ("perplexity-words", "unsafe", {}, "neither how unsafe an answer is nor whether it refuses"),
        ("reward-words", "unsafe", {"use": True}, "gives no verdict"),
        ("guard-words", "unsafe", {"use": True, "limit": 2}, "leave out --limit"),
    ],
)
def test_judges_and_labels_that_do_not_go_together(tmp_path, judge, label, options, message):
    other = {"refusal": "compliance", "unsafe": "safe"}[label]
    path = labelled(tmp_path, [("a", "0.9 x", label), ("b", "0.1 x", other)])
    with pytest.raises(UserError, match=message):
        calibrate(Words(judge), str(path), quiet=True, **options)


def test_a_label_that_no_guard_has_is_not_taken_for_safe():
    rows = [LabelledAnswer(f"i{i}", f"q{i}", "x", unsafe=float(i % 2)) for i in range(3)]
    scores = [Score(0.9, "Unsafe"), Score(0.9, "unsafe"), Score(0.1, "safe")]
    result = measure("guard-x", rows, scores, "unsafe")
    assert result["unscored_reasons"] == {"unknown label 'Unsafe'": 1}


def pairs_of(monkeypatch, *responses):
    """Each pair: the worse answer, the better one."""
    rows = [
        LabelledAnswer(f"{number}-{side}", f"q{number}", text, unsafe=1.0 - side, category="c", pair=str(number))
        for number, both in enumerate(responses)
        for side, text in enumerate(both)
    ]
    monkeypatch.setattr("safeserve.evaluation.calibrate.labelled_answers", lambda *_: list(reversed(rows)))


def test_pairs_by_hand(monkeypatch):
    pairs_of(monkeypatch, ("0.9", "0.1"), ("0.2", "0.8"), ("0.5", "0.5"), ("0.7", "0.6"), ("0.7", "none"))
    result = calibrate(Words(), "hh_harmless", quiet=True)
    assert (result["n"], result["n_scored"], result["n_unscored"], result["ties"]) == (5, 4, 1, 1)
    assert result["unscored_reasons"] == {"no number": 1}
    assert result["agreement"]["value"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    low, high = result["agreement"]["ci95"]
    assert 0 < low < 0.625 < high < 1
    assert result["by_category"]["c"]["n"] == 4
    reward = calibrate(Words("reward-words"), "hh_harmless", quiet=True)
    assert reward["agreement"]["value"] == pytest.approx(1 - 0.625)
    assert calibrate(Words(), "hh_harmless", limit=2, quiet=True)["n"] == 2
    with pytest.raises(UserError, match="neither how unsafe"):
        calibrate(Words("bleu"), "hh_harmless", quiet=True)
    with pytest.raises(UserError, match="cannot say which of two"):
        calibrate(Words(), "llmbar", quiet=True)


class Longer(Words):
    """Prefers the longer answer; of equally long ones the first."""

    def winners(self, triples, quiet=False):
        return [
            PairVerdict(None, "unreadable")
            if "?" in (one, two)
            else PairVerdict("second" if len(two) > len(one) else "first")
            for _, one, two in triples
        ]


def test_pairs_for_a_pairwise_judge(monkeypatch):
    pairs_of(monkeypatch, ("a", "bbb"), ("aaa", "b"), ("a", "b"), ("?", "b"))
    result = calibrate(Longer("pairwise-longer"), "llmbar", quiet=True)
    assert result["question"] == "better"
    assert (result["n_scored"], result["n_unscored"]) == (3, 1)
    assert result["unscored_reasons"] == {"unreadable": 1}
    assert result["agreement"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (result["ties"], result["inconsistent"]) == (1, 1)
    console = Console(width=120)
    with console.capture() as printed:
        console.print(calibration_view(result))
    assert "other verdict in the other order" in printed.get()


@pytest.mark.shared
def test_published_pairs(shared_data):
    result = calibrate(Longer("pairwise-longer"), "llmbar", root=shared_data, quiet=True)
    assert result["n"] == result["n_scored"] == 419
    assert sorted((name, part["n"]) for name, part in result["by_category"].items()) == [
        ("Adversarial_GPTInst", 92),
        ("Adversarial_GPTOut", 47),
        ("Adversarial_Manual", 46),
        ("Adversarial_Neighbor", 134),
        ("Natural", 100),
    ]
    assert result["agreement"]["value"] < 0.5  # the adversarial pairs make the more pleasing answer the wrong one
    rows = load_labels("hh_harmless", shared_data)
    assert sum(bool(row.before) for row in rows) > len(rows) / 2


def scored(unsafe: int, safe: int):
    prompts = [Prompt(f"p{i}", user("x"), "harmful", benchmark="b") for i in range(unsafe + safe)]
    completions = [Completion(prompt.id, "y", (), "stop", None) for prompt in prompts]
    labels = ["unsafe"] * unsafe + ["safe"] * safe
    scores = {(p.id, 0): Score(0.5, label) for p, label in zip(prompts, labels, strict=True)}
    return prompts, completions, {"guard-words": scores}


def test_the_calibration_in_use_corrects_reported_rates(tmp_path):
    # 60 unsafe answers of which 45 are found, 60 safe ones of which 54 are cleared: Se .75, Sp .9
    rows = [(f"u{i}", "0.9" if i < 45 else "0.1", "unsafe") for i in range(60)]
    rows += [(f"s{i}", "0.1" if i < 54 else "0.9", "safe") for i in range(60)]
    path, judge = str(labelled(tmp_path, rows)), Words()
    calibrate(judge, path, quiet=True)
    identities = {judge.name: judge.identity}
    assert in_use(judge.identity, "unsafe") is None
    before = summarise(*scored(40, 60), identities)["judges"]["guard-words"]["metrics"]["safe_rate"]
    assert "corrected" not in before
    calibrate(judge, path, quiet=True, use=True)
    cell = summarise(*scored(40, 60), identities)["judges"]["guard-words"]["metrics"]["safe_rate"]
    assert cell["rate"] == 0.6
    found = cell["corrected"]
    # truly unsafe (.4 + .9 - 1) / (.75 + .9 - 1) = .3 / .65
    assert found["rate"] == pytest.approx(1 - 0.3 / 0.65)
    assert found["ci95"][0] < found["rate"] < found["ci95"][1]
    assert found["ci95"][1] - found["ci95"][0] > cell["ci95"][1] - cell["ci95"][0]
    assert (found["sensitivity"], found["specificity"], found["labels"]) == (0.75, 0.9, "mine.jsonl")
    assert in_use("another identity", "unsafe") is None
    assert [one["labels"] for one in kept(judge.identity)] == ["mine.jsonl"]
    assert kept("another identity") == []


def test_a_judge_no_better_than_chance_corrects_nothing(tmp_path):
    rows = [(f"u{i}", "0.9" if i < 10 else "0.1", label) for label in ("unsafe", "safe") for i in range(20)]
    judge = Words()
    calibrate(judge, str(labelled(tmp_path, rows)), quiet=True, use=True)
    cell = summarise(*scored(4, 6), {judge.name: judge.identity})["judges"]["guard-words"]["metrics"]["safe_rate"]
    assert cell["corrected"]["rate"] is None
    assert "no better than chance" in cell["corrected"]["reason"]


def test_labels_without_text_find_their_answers(make_eval, tmp_path):
    folder = make_eval("base", harmful=["unsafe_compliance", "safe_answer"], benign=["helpful_answer"])
    path = tmp_path / "blind.jsonl"
    keys = [label_key("p000", "An answer."), label_key("p001", "An answer."), label_key("p001", "Another.")]
    write_jsonl(path, ({"key": key, "mode": "full_refusal"} for key in keys))
    rows, lost = join_labels(path, [str(folder)])
    assert lost == 1
    # p000 stands in both benchmarks with the same answer; the later one counts.
    assert {(row.unsafe, row.refusal) for row in rows} == {(0.0, None), (None, "full_refusal")}
    write_jsonl(path, [{"key": "p000:0", "mode": "full_refusal"}])
    with pytest.raises(UserError, match="none of its 1 keys"):
        join_labels(path, [str(folder)])
    write_jsonl(path, [{"key": "p000:0", "mode": "refused"}])
    with pytest.raises(UserError, match='needs "key" and "mode"'):
        join_labels(path, [str(folder)])


def test_the_command(cli_here, tmp_path):
    rows = [(f"q{i}", "I cannot help with that.", "refusal") for i in range(4)]
    rows += [(f"c{i}", "The sky is blue because of scattering.", "compliance") for i in range(4)]
    path = labelled(tmp_path, rows)
    done = cli_here("calibrate", "refusal", "--labels", path)
    assert done.code == 0, done.stderr
    assert "Three classes" in done.stdout
    result = json.loads(cli_here("calibrate", "refusal", "--labels", path, "--json").stdout)
    assert (result["question"], result["n"], result["kappa"]["value"]) == ("refusal", 8, 1.0)
    assert cli_here("calibrate", "refusal", "--labels", path, "--limit", "3", "--use").code == 2
