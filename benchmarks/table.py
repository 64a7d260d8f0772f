"""The tables of docs/speed.md, from the JSON files of the benchmarks: the page keeps its text, the tables are written.

    python -m benchmarks.table                              write every table but the stages'
    python -m benchmarks.table --check                      exit 1 if the page is not what the JSON files give
    python -m benchmarks.table --stages runs/quickstart     write the table of a finished run's stages

A table stands between two markers. What was not measured yet has a row that says so, with the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeserve.core.errors import UserError
from safeserve.core.runs import read_json, write_text
from safeserve.pipeline.stages import stage_markdown, stage_times

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "speed.md"
PLOT = Path("images") / "speed_growth.svg"
"""Beside the page."""
OURS = "safeserve"
MIB, GIB = 2**20, 2**30

Result = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A line of the page: the ``benchmark`` that its JSON names, its label, and the command that measures it.

    One that is not ``expected`` is not missed where it was not measured.
    """

    name: str
    label: str
    command: str
    expected: bool = True


_EXPECTED = (
    Work("dpo-float32", "DPO, PKU pairs, float32", "python -m benchmarks.dpo"),
    Work("dpo-bfloat16", "DPO, PKU pairs, bfloat16", "python -m benchmarks.dpo --dtype bfloat16"),
    Work("dpo-long-float32", "DPO, long prompts, float32", "python -m benchmarks.dpo --prompts long"),
    Work("sit-float32", "SIT, float32", "python -m benchmarks.sit"),
    Work("sit-bfloat16", "SIT, bfloat16", "python -m benchmarks.sit --dtype bfloat16"),
    Work("reward-float32", "reward model, PKU pairs, float32", "python -m benchmarks.reward"),
    Work("generation-float32", "generation, greedy, float32", "python -m benchmarks.generation"),
    Work("generation-bfloat16", "generation, greedy, bfloat16", "python -m benchmarks.generation --dtype bfloat16"),
    Work("generation-k8-float32", "8 samples a prompt, float32", "python -m benchmarks.generation --samples 8"),
    Work("scoring-guard-k8-float32", "guard, 8 answers a prompt, float32", "python -m benchmarks.scoring"),
    Work("scoring-guard-float32", "guard, an answer a prompt, float32", "python -m benchmarks.scoring"),
    Work("scoring-reward-k8-float32", "reward model, 8 answers a prompt, float32", "python -m benchmarks.scoring"),
)
_NAMES = {work.name for work in _EXPECTED}
_MORE = tuple(
    Work(name, work.label.replace("float32", "bfloat16"), f"{work.command} --dtype bfloat16", expected=False)
    for work in _EXPECTED
    if (name := work.name.replace("float32", "bfloat16")) not in _NAMES
)
WORKS = (*_EXPECTED, *_MORE)
GPU_WORKS = tuple(
    Work(f"gpu-{work}-{size}", f"{label}, {size}", "python -m benchmarks.gpu")
    for work, label in (("dpo", "DPO"), ("sit", "SIT"), ("generation", "generation"))
    for size in ("1.5B", "3B", "8B")
)
GROWTH = Work("growth-float32", "growth", "python -m benchmarks.growth")
PROFILES = tuple(
    Work(f"profile-{dtype}", f"DPO, {dtype}", f"python -m benchmarks.profile --dtype {dtype}")
    for dtype in ("float32", "bfloat16")
)


def results(folder: Path) -> list[Result]:
    """Every measurement in ``folder``; trials with ``--quick`` measure nothing and are left out."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    return [one for one in found if "benchmark" in one and not one["arguments"].get("quick")]


class Machines:
    """Letters for the machines and versions that numbers come from, in order of first use."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def letter(self, result: Result) -> str:
        """The letter of a result's machine."""
        machine = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
        words = [machine["gpu"] or machine["cpu"], f"{machine['cores']} cores", f"{machine['threads']} threads"]
        described = f"{', '.join(words)}; {versions}"
        return self._letters.setdefault(described, chr(ord("A") + len(self._letters)))

    def lines(self) -> list[str]:
        """What each letter stands for."""
        return [f"* {letter}: {described}" for described, letter in self._letters.items()]


def of_work(found: Sequence[Result], work: Work) -> list[Result]:
    """A work's results, one a machine; those of GPUs only for the works of GPUs."""
    on_gpu = work in GPU_WORKS
    return [one for one in found if one["benchmark"] == work.name and bool(one["machine"]["gpu"]) == on_gpu]


def named(work: Work, result: Result) -> str:
    """The work's label; with bfloat16 also whether this processor computes it in hardware."""
    if "bfloat16" not in work.name:
        return work.label
    return f"{work.label} ({'in hardware' if 'AVX512-BF16' in result['machine']['cpu'] else 'emulated'})"


def times(ratio: Mapping[str, float]) -> str:
    """A ratio with its spread, as ``**2.13** [2.05, 2.20]``."""
    return f"**{ratio['median']:.2f}** [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def percent(share: float | None) -> str:
    """A share without digits, one where it is small."""
    return "–" if share is None else f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; columns after the first ``left`` are right-aligned."""
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[1:]])


def missing(work: Work, columns: int, words: str = "not yet measured") -> list[str]:
    """A row for what has no JSON."""
    return [work.label, f"{words}: `{work.command}`", *[""] * (columns - 2)]


def rates(result: Result, peer: str) -> str:
    """Both sides' absolute rates in small print."""
    sides, unit = result["sides"], result["workload"]["unit"]
    return f"<sub>{sides[OURS]['rate']:.3g} / {sides[peer]['rate']:.3g} {unit}s/s</sub>"


def shares(result: Result, peer: str) -> str:
    """Share of the GEMM peak that both sides reach; a dash where the run did not keep it."""
    reached = result.get("share_of_peak")
    return f"{percent(reached[OURS])} / {percent(reached[peer])}" if reached else "–"


def ratio_table(found: Sequence[Result], machines: Machines) -> str:
    """One row a work, machine and peer."""
    header = ("work", "peer", "machine", "times as fast", "n", "share of peak: ours / peer", "rates: ours / peer")
    rows = []
    for work in WORKS:
        measured = of_work(found, work)
        if not measured and work.expected:
            rows.append(missing(work, len(header)))
        for one in measured:
            for peer, ratio in one["ratios"].items():
                first = [named(work, one), peer, machines.letter(one), times(ratio), str(ratio["n"])]
                rows.append([*first, shares(one, peer), rates(one, peer)])
    return table(header, rows, left=3)


def tunings(result: Result) -> dict[str, Any]:
    """What was tuned, by side."""
    tuning = result.get("tuning") or {}
    return {"trl tuned": tuning} if "best" in tuning else tuning


def agreement(result: Result) -> str:
    """In words how far both sides agreed before anything was timed."""
    found = result.get("agreement")
    if found is None:
        return f"first loss within 0.001 of {result['tuning']['loss']:.4f}"
    if "nats_per_token_apart" in found:
        return f"{found['nats_per_token_apart']:.1e} nats a token apart, first loss {found['first_loss']:.4f}"
    if "apart" in found:
        return f"values at most {found['apart']:.1e} apart"
    if "first_loss" in found:
        return f"first losses {found['first_loss']:.4f} and {found['peer_first_loss']:.4f}"
    if "losses" in found:
        return f"losses of the first steps {found['losses']} and {found['peer_losses']}"
    parts = [
        f"{peer}: {one['same']} of {one['answers']} answers the same, {len(one['near_ties'])} near-ties"
        for peer, one in found.items()
    ]
    return "; ".join(parts)


def size(result: Result) -> str:
    """How much each run did, as ``96 prompts, at most 128 new tokens each``."""
    work, arguments = result["workload"], result["arguments"]
    if work["unit"] != "new token":
        return f"{work['count']} {work['unit']}s"
    return f"{work['count']} prompts, at most {arguments['new_tokens']} new tokens each"


def settings_table(found: Sequence[Result], machines: Machines) -> str:
    """How much a run did, what tuning chose, how much was tried, and the agreement."""
    header = ("work", "machine", "a run", "fastest settings", "tried", "agreement before timing")
    rows = []
    for work in (*WORKS, *GPU_WORKS):
        for one in of_work(found, work):
            best, tried = [], []
            for side, tuning in tunings(one).items():
                failed = sum("error" in attempt for attempt in tuning["tried"].values())
                best.append(f"{side}: {tuning['best']}")
                tried.append(str(len(tuning["tried"])) + (f" ({failed} did not work)" if failed else ""))
            cells = ["; ".join(best) or "–", "; ".join(tried) or "–", agreement(one)]
            rows.append([named(work, one), machines.letter(one), size(one), *cells])
    return table(header, rows, left=6) if rows else "Not yet measured: no peer was tuned yet."


def memory_table(found: Sequence[Result], machines: Machines) -> str:
    """Peak memory of a DPO step on the longest pairs, by side."""
    header = ("work", "machine", "side", "above the loaded model", "ours is", "whole process", "ours is")
    rows = []
    for work in WORKS:
        if not work.name.startswith("dpo-"):
            continue
        measured = [one for one in of_work(found, work) if one.get("memory")]
        if not measured and work.expected:
            rows.append(missing(work, len(header)))
        for one in measured:
            mine = one["memory"][OURS]
            for side, spent in one["memory"].items():
                cells = []
                if "error" in spent:
                    rows.append([named(work, one), machines.letter(one), side, "did not finish", "", "", ""])
                    continue
                for key in ("step_bytes", "peak_bytes"):
                    ratio = "" if side == OURS or key not in mine else f"**{mine[key] / spent[key]:.2f}×**"
                    cells += [f"{spent[key] / MIB:,.0f} MiB", ratio]
                rows.append([named(work, one), machines.letter(one), side, *cells])
    return table(header, rows, left=3)


def decoding_table(found: Sequence[Result], machines: Machines) -> str:
    """Share of the GEMM peak in decoding, beside what the model's own matrix products alone reach."""
    header = ("work", "machine", "side", "share of peak", "the model's products alone, 24 rows", "96 rows")
    rows = []
    for work in WORKS:
        if not work.name.startswith("generation-"):
            continue
        measured = of_work(found, work)
        if not measured and work.expected:
            rows.append(missing(work, len(header)))
        for one in measured:
            alone = [own_shares(one["gemm"], count) for count in (24, 96)]
            for side, share in one["share_of_peak"].items():
                rows.append([named(work, one), machines.letter(one), side, percent(share), *alone])
    return table(header, rows, left=3)


def own_shares(peaks: Sequence[Mapping[str, Any]], count: int) -> str:
    """The slowest and the fastest of the model's products with ``count`` rows, as shares of the peak."""
    top = max(peak["square"] for peak in peaks)
    own = [max(peak["own"][at] for peak in peaks) / top for at in peaks[0]["own"] if at.startswith(f"{count}x")]
    return f"{percent(min(own))} to {percent(max(own))}" if own else "–"


def growth_table(found: Sequence[Result], machines: Machines, page: Path) -> str:
    """How cost grows with the micro-batch and with the number of prompts."""
    measured = [one for one in found if one["benchmark"] == GROWTH.name]
    if not measured:
        return f"Not yet measured: `{GROWTH.command}`"
    parts = []
    for one in measured:
        dpo = [[f"{r['budget']:,}", f"{r['rate']:.3g}", percent(r.get("share")), *_above(r)] for r in one["dpo"]]
        prompts = [[f"{r['prompts']:,}", f"{r['seconds']:,.1f}", *_above(r)] for r in one["evaluation"]]
        memory = ("peak memory", "above the loaded model")
        parts.append(f"Machine {machines.letter(one)}:")
        parts.append(table(("DPO: tokens in a micro-batch", "pairs/s", "share of peak", *memory), dpo, left=0))
        parts.append(table(("evaluation: prompts", "seconds", *memory), prompts, left=0))
    if (page.parent / PLOT).exists():
        parts.append(f"![Pairs a second and memory by micro-batch; seconds and memory by prompts]({PLOT.as_posix()})")
    return "\n\n".join(parts)


def _above(row: Mapping[str, float]) -> list[str]:
    peak, before = row["peak_bytes"], row["baseline_bytes"]
    return [f"{peak / MIB:,.0f} MiB", f"{(peak - before) / MIB:,.0f} MiB"]


def profile_table(found: Sequence[Result], machines: Machines) -> str:
    """Where the time of DPO goes, by kind of work."""
    rows = [
        [named(work, one), kind, machines.letter(one), f"{seconds:.1f}", percent(seconds / one["seconds"]["profiled"])]
        for work in PROFILES
        for one in of_work(found, work)
        for kind, seconds in one["by_kind"].items()
    ]
    header = ("work", "kind of work", "machine", "seconds", "share")
    return table(header, rows or [missing(PROFILES[0], len(header))], left=3)


def gpu_table(found: Sequence[Result], machines: Machines) -> str:
    """One row a work, size and peer, with MFU and peak memory beside the weights."""
    memory = "peak memory above the weights: ours / peer"
    reached, rate = "MFU: ours / peer", "rates: ours / peer"
    header = ("work, weights", "peer", "machine", "times as fast", "n", reached, memory, rate)
    rows = []
    for work in GPU_WORKS:
        measured = of_work(found, work)
        if not measured:
            rows.append(missing(work, len(header), "not yet run on a GPU"))
        for one in measured:
            for peer, ratio in one["ratios"].items():
                first = [work.label, peer, machines.letter(one), times(ratio), str(ratio["n"])]
                peaks = " / ".join(_gpu_peak(one["sides"][side]) for side in (OURS, peer))
                rows.append([*first, shares(one, peer), peaks, rates(one, peer)])
    return table(header, rows, left=3)


def _gpu_peak(side: Mapping[str, Any]) -> str:
    peaks = [run["step_bytes"] for run in side["runs"] if "step_bytes" in run]
    return f"{max(peaks) / GIB:.1f} GiB" if peaks else "–"


def sections(found: Sequence[Result], page: Path) -> dict[str, str]:
    """Every table by the name in its markers."""
    machines = Machines()
    made = {
        "ratios": ratio_table(found, machines),
        "memory": memory_table(found, machines),
        "decoding": decoding_table(found, machines),
        "growth": growth_table(found, machines, page),
        "profile": profile_table(found, machines),
        "gpu": gpu_table(found, machines),
        "settings": settings_table(found, machines),
    }
    return {**made, "machines": "\n".join(machines.lines()) or "Nothing is measured yet."}


def stages_section(run: Path) -> str:
    """The stages of a finished run, with its machine; a UserError where it is none."""
    machines = Machines()
    machines.letter(read_json(run / "manifest.json"))
    return f"{stage_markdown(stage_times(run))}\n\nMachine: {machines.lines()[0].partition(': ')[2]}"


def markers(name: str) -> tuple[str, str]:
    """The lines between which a table stands."""
    return f"<!-- speed: {name} -->", f"<!-- end of speed: {name} -->"


def filled(text: str, made: Mapping[str, str], page: Path = PAGE) -> str:
    """The page with these tables between their markers.

    Raises:
        UserError: the page lacks a marker.
    """
    for name, content in made.items():
        start, end = markers(name)
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise UserError(f"{page}: no lines {start} and {end}.")
        text = f"{before}{start}\n{content}\n{end}{after}"
    return text


def _changed(before: str, after: str) -> Iterator[str]:
    for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
        if old != new:
            yield f"- {old}\n+ {new}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page would change")
    parser.add_argument("--stages", type=Path, metavar="RUN", help="also write the stages of this finished run")
    options = parser.parse_args(arguments)
    made = sections(results(options.results), options.page)
    before = options.page.read_text(encoding="utf-8")
    try:
        if options.stages:
            made["stages"] = stages_section(options.stages)
        after = filled(before, made, options.page)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.check:
        write_text(options.page, after)
        return 0
    if before != after:
        first = next(_changed(before, after), "the end")
        print(f"{options.page} differs from the results; run `python -m benchmarks.table`:\n{first}", file=sys.stderr)
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main())
