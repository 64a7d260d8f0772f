"""The tables of docs/speed.md: what a small result looks like, what is missing, and that an edited page is noticed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from safeserve.core.runs import write_json

MACHINE = {"cpu": "Some CPU", "gpu": None, "cores": 2, "threads": 2, "versions": {"torch": "2.9", "trl": "1.16"}}


def result(name: str, peers: tuple[str, ...] = ("trl tuned",), **more: Any) -> dict[str, Any]:
    """A measurement in which safeserve is twice as fast as each peer."""
    sides = {"safeserve": {"rate": 0.8, "runs": [{"units": 8, "seconds": 10.0}]}}
    sides |= {peer: {"rate": 0.4, "runs": [{"units": 8, "seconds": 20.0}]} for peer in peers}
    return {
        "benchmark": name,
        "machine": MACHINE,
        "arguments": {"quick": False},
        "sides": sides,
        "ratios": {peer: {"median": 2.0, "low": 1.9, "high": 2.15, "n": 5} for peer in peers},
        "share_of_peak": {"safeserve": 0.62, **dict.fromkeys(peers, 0.093)},
        "workload": {"unit": "pair", "count": 64},
        "agreement": {"nats_per_token_apart": 2e-5, "first_loss": 0.6931},
        "tuning": {"best": "4 a device", "tried": {"4 a device": {"rate": 0.4}, "8 a device": {"error": "no"}}},
        **more,
    }


def made(*found: dict[str, Any], page: Path = table.PAGE) -> dict[str, str]:
    return table.sections(found, page)


def row(text: str, start: str) -> list[str]:
    """Cells of the table row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_ratio_row() -> None:
    cells = row(made(result("dpo-float32"))["ratios"], "DPO, PKU pairs, float32")
    assert cells == [
        "DPO, PKU pairs, float32",
        "trl tuned",
        "A",
        "**2.00** [1.90, 2.15]",
        "5",
        "62 % / 9.3 %",
        "<sub>0.8 / 0.4 pairs/s</sub>",
    ]
    assert made(result("dpo-float32"))["machines"] == "* A: Some CPU, 2 cores, 2 threads; torch 2.9, trl 1.16"


def test_what_is_not_measured_says_how() -> None:
    sections = made()
    assert (
        row(sections["ratios"], "SIT, bfloat16")[1] == "not yet measured: `python -m benchmarks.sit --dtype bfloat16`"
    )
    assert sections["ratios"].count("not yet measured") == sum(work.expected for work in table.WORKS) == 12
    assert sections["gpu"].count("not yet run on a GPU: `python -m benchmarks.gpu`") == 9
    assert sections["growth"] == "Not yet measured: `python -m benchmarks.growth`"
    columns = {line.count("|") for line in sections["ratios"].splitlines()}
    assert len(columns) == 1


def test_every_command_is_a_script_with_these_options() -> None:
    for work in (*table.WORKS, *table.GPU_WORKS, table.GROWTH, *table.PROFILES):
        module, *options = work.command.removeprefix("python -m benchmarks.").split()
        script = (table.REPOSITORY / "benchmarks" / f"{module}.py").read_text(encoding="utf-8")
        known = script + (table.REPOSITORY / "benchmarks" / "common.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in known for option in options if option.startswith("--"))


@pytest.mark.parametrize(("cpu", "words"), [("Some CPU", "emulated"), ("Other with AVX512-BF16", "in hardware")])
def test_bfloat16_rows_name_the_hardware(cpu: str, words: str) -> None:
    found = result("sit-bfloat16", machine={**MACHINE, "cpu": cpu})
    assert row(made(found)["ratios"], f"SIT, bfloat16 ({words})")[1] == "trl tuned"


def test_what_nobody_waits_for_is_shown_once_measured() -> None:
    label = "8 samples a prompt, bfloat16 (emulated)"
    assert "8 samples a prompt, bfloat16" not in made()["ratios"]
    peaks = [{"square": 1.0, "own": {}}]
    found = result("generation-k8-bfloat16", ("generate",), tuning=None, agreement={}, gemm=peaks)
    assert row(made(found)["ratios"], label)[3] == "**2.00** [1.90, 2.15]"


def test_two_machines_have_two_letters_and_rows() -> None:
    other = result("dpo-float32", machine={**MACHINE, "cpu": "Other CPU"})
    sections = made(result("dpo-float32"), other)
    assert [line.split("|")[3].strip() for line in sections["ratios"].splitlines()[2:4]] == ["A", "B"]
    assert len(sections["machines"].splitlines()) == 2


def test_settings_and_agreement() -> None:
    cells = row(made(result("dpo-float32"))["settings"], "DPO, PKU pairs, float32")
    assert cells[2:] == [
        "64 pairs",
        "trl tuned: 4 a device",
        "2 (1 did not work)",
        "2.0e-05 nats a token apart, first loss 0.6931",
    ]
    losses = {"losses": [0.6931, 0.6778], "peer_losses": [0.6931, 0.6779], "pairs": 16}
    cells = row(made(result("reward-float32", agreement=losses))["settings"], "reward model, PKU pairs, float32")
    assert cells[-1] == "losses of the first steps [0.6931, 0.6778] and [0.6931, 0.6779]"
    several = {peer: {"best": f"{peer} best", "tried": {"a": {"rate": 1.0}}} for peer in ("generate", "batching")}
    agreed = {"generate": {"answers": 4, "same": 3, "near_ties": [{"gap": 1e-4}]}}
    found = result("generation-float32", tuning=several, agreement=agreed, gemm=[{"square": 1.0, "own": {}}])
    found |= {"workload": {"unit": "new token", "count": 96}, "arguments": {"new_tokens": 128}}
    cells = row(made(found)["settings"], "generation, greedy, float32")
    assert cells[2:] == [
        "96 prompts, at most 128 new tokens each",
        "generate: generate best; batching: batching best",
        "1; 1",
        "generate: 3 of 4 answers the same, 1 near-ties",
    ]


def test_memory_is_shown_as_our_part_of_the_others() -> None:
    memory = {
        "safeserve": {"peak_bytes": 900 * 2**20, "step_bytes": 300 * 2**20},
        "trl tuned": {"peak_bytes": 1500 * 2**20, "step_bytes": 1000 * 2**20},
    }
    text = made(result("dpo-float32", memory=memory))["memory"]
    assert "| safeserve | 300 MiB |  | 900 MiB |  |" in text
    assert "| trl tuned | 1,000 MiB | **0.30×** | 1,500 MiB | **0.60×** |" in text


def test_a_side_without_enough_memory_did_not_finish() -> None:
    spent = {"step_bytes": 2**30, "peak_bytes": 2**31}
    found = result("dpo-float32", memory={"safeserve": spent, "trl tuned": {"error": "killed"}})
    shown = [line for line in made(found)["memory"].splitlines() if line.startswith("| DPO, PKU pairs, float32 ")]
    assert [line.split(" | ")[2:5] for line in shown] == [
        ["safeserve", "1,024 MiB", ""],
        ["trl tuned", "did not finish", ""],
    ]


def test_a_share_that_was_not_kept_is_a_dash() -> None:
    found = result("dpo-float32")
    del found["share_of_peak"]
    assert row(made(found)["ratios"], "DPO, PKU pairs, float32")[5] == "–"


def test_decoding_is_shown_beside_the_products_alone() -> None:
    peaks = [
        {"square": 100.0, "own": {"24x8x8": 30.0, "24x8x16": 50.0, "96x8x8": 70.0}},
        {"square": 90.0, "own": {"24x8x8": 20.0, "24x8x16": 60.0, "96x8x8": 60.0}},
    ]
    found = result("generation-float32", ("generate",), gemm=peaks, agreement={}, tuning=None)
    lines = made(found)["decoding"].splitlines()
    assert lines[2].endswith("| safeserve | 62 % | 30 % to 60 % | 70 % to 70 % |")


def test_growth_has_its_plot_when_it_is_there(tmp_path: Path) -> None:
    point = {"peak_bytes": 3 * 2**20, "baseline_bytes": 2**20}
    found = {"benchmark": "growth-float32", "machine": MACHINE, "arguments": {}}
    found |= {
        "dpo": [{"budget": 1024, "rate": 0.5, "share": 0.6, **point}],
        "evaluation": [{"prompts": 100_000, "seconds": 9, **point}],
    }
    text = made(found, page=tmp_path / "speed.md")["growth"]
    assert "| 1,024 | 0.5 | 60 % | 3 MiB | 2 MiB |" in text
    assert "| 100,000 | 9.0 | 3 MiB | 2 MiB |" in text
    assert "![" not in text
    (tmp_path / "images").mkdir()
    (tmp_path / table.PLOT).write_text("<svg/>", encoding="utf-8")
    assert f"]({table.PLOT.as_posix()})" in made(found, page=tmp_path / "speed.md")["growth"]


def test_the_profile_is_shown_by_kind_of_work() -> None:
    seen = {"by_kind": {"attention": 1.0, "copies": 3.0}, "seconds": {"plain": 3.5, "profiled": 4.0}}
    text = made({"benchmark": "profile-float32", "machine": MACHINE, "arguments": {}, **seen})["profile"]
    assert text.splitlines()[2:] == [
        "| DPO, float32 | attention | A | 1.0 | 25 % |",
        "| DPO, float32 | copies | A | 3.0 | 75 % |",
    ]
    assert "python -m benchmarks.profile" in made()["profile"]


def test_gpu_rows_come_from_gpus_only() -> None:
    on_cpu = result("gpu-dpo-1.5B")
    assert row(made(on_cpu)["gpu"], "DPO, 1.5B")[1].startswith("not yet run")
    on_gpu = result("gpu-dpo-1.5B", machine={**MACHINE, "gpu": "Some GPU"})
    on_gpu["sides"]["safeserve"]["runs"][0]["step_bytes"] = 3 * 2**30
    assert row(made(on_gpu)["gpu"], "DPO, 1.5B")[6] == "3.0 GiB / –"
    assert made(on_gpu)["machines"].startswith("* A: Some GPU,")


def test_trials_are_left_out(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", result("dpo-float32", arguments={"quick": True}))
    write_json(tmp_path / "b.json", result("sit-float32"))
    assert [one["benchmark"] for one in table.results(tmp_path)] == ["sit-float32"]


def page_of(folder: Path) -> Path:
    """A page with all markers and nothing between them."""
    page = folder / "speed.md"
    lines = [line for name in made() for line in table.markers(name)]
    page.write_text("# Title\n\n" + "\n".join(lines) + "\n\nText stays.\n", encoding="utf-8")
    return page


def test_the_page_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(tmp_path)
    folder = tmp_path / "results"
    write_json(folder / "dpo.json", result("dpo-float32"))
    arguments = ["--results", str(folder), "--page", str(page)]
    assert table.main([*arguments, "--check"]) == 1
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "**2.00** [1.90, 2.15]" in text
    assert text.startswith("# Title")
    assert text.endswith("Text stays.\n")
    page.write_text(text.replace("**2.00**", "**2.50**"), encoding="utf-8")
    capsys.readouterr()
    assert table.main([*arguments, "--check"]) == 1
    assert "**2.50**" in capsys.readouterr().err
    assert "**2.50**" in page.read_text(encoding="utf-8")


def test_a_page_without_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "speed.md"
    page.write_text("# Title\n", encoding="utf-8")
    assert table.main(["--page", str(page), "--results", str(tmp_path)]) == 2
    assert "<!-- speed: ratios -->" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "# Title\n"


def test_stages_of_a_run(tmp_path: Path) -> None:
    run, page = tmp_path / "run", page_of(tmp_path)
    write_json(run / "manifest.json", {"seconds": {"train sit": 5.0}, "machine": MACHINE})
    write_json(run / "stages" / "train-sit" / "metrics.json", {"stage_seconds": 5.0})
    arguments = ["--results", str(tmp_path / "none"), "--page", str(page), "--stages", str(run)]
    assert table.main(arguments) == 2  # no markers for it yet
    start, end = table.markers("stages")
    page.write_text(page.read_text(encoding="utf-8") + f"{start}\n{end}\n", encoding="utf-8")
    assert table.main(arguments) == 0
    text = page.read_text(encoding="utf-8")
    assert "| `train-sit` | 5.0 |" in text
    assert "Machine: Some CPU, 2 cores" in text
    assert table.main([*arguments[:4], "--check"]) == 0  # the stages are a run's, not the results'


def test_the_page_of_the_project_is_what_its_results_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["--check"]) == 0, capsys.readouterr().err


def test_links_of_the_page_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", table.PAGE.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if "://" not in target and not (table.PAGE.parent / target).exists()] == []
