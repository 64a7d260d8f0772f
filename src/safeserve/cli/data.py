"""``safeserve data list|show|check|get``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from safeserve.cli.common import next_commands, print_json
from safeserve.core.errors import harmless

app = typer.Typer(help="Data: what there is, what a row looks like, what is wrong with it.", no_args_is_help=True)


class Holds(StrEnum):
    """What a file holds."""

    demonstrations = "demonstrations"
    prompts = "prompts"
    pairs = "pairs"


class KindName(StrEnum):
    """What demonstrations or pairs teach."""

    helpful = "helpful"
    look_alike = "look_alike"
    safety = "safety"


class LabelName(StrEnum):
    """What prompts are."""

    harmful = "harmful"
    benign = "benign"


NAME = typer.Argument(help="A name of `safeserve data list`, or a file (JSONL, JSON, CSV, TSV, Parquet; .gz too).")
ROOT = typer.Option(None, "--root", envvar="SAFESERVE_DATA_ROOT", help="Folder that holds the public data sets.")
MAP = typer.Option([], "--map", help="Our field = the file's column, for example --map prompt=question. Repeatable.")
AS = typer.Option(None, "--as", help="What a file holds; by default found from its columns.")
KIND = typer.Option(None, "--kind", help="Kind of rows that do not say it.")
LABEL = typer.Option(None, "--label", help="Label of prompts that have none.")
JSON = typer.Option(False, "--json", help="Machine-readable output.")


@app.command("list")
def list_sources(root: Path | None = ROOT, as_json: bool = JSON) -> None:
    """Every named source: what it holds, its licence, where it comes from."""
    from safeserve.data.catalogue import SOURCES
    from safeserve.data.fetching import availability

    rows = [
        {
            "name": source.name,
            "holds": source.holds,
            "use": source.use,
            "licence": source.licence,
            "where": availability(source, root),
            "local": source.local,
            "note": source.note,
        }
        for source in SOURCES.values()
    ]
    if as_json:
        print_json(rows)
        return
    _table(("name", "holds", "where", "licence", "use"), rows)
    next_commands("safeserve data show starter/safety", "safeserve data check starter/safety")


@app.command()
def show(
    name: str = NAME,
    mask: bool = typer.Option(False, "--mask", help="Render as the model sees it and mark what the loss counts on."),
    model: str = typer.Option("smollm2-135m-instruct@wheel", "--model", help="Whose chat format --mask uses."),
    template: str | None = typer.Option(None, "--template", help="alpaca or chatml, for a model without a template."),
    limit: int = typer.Option(3, "--limit", min=1, help="How many rows."),
    root: Path | None = ROOT,
    mapping: list[str] = MAP,
    holds: Holds | None = AS,
    kind: KindName | None = KIND,
    label: LabelName | None = LABEL,
    as_json: bool = JSON,
) -> None:
    """Print rows as they were read; with --mask, the rendered example with its loss mask."""
    loaded = _load(name, root, mapping, holds, kind, label)
    rows = loaded.rows[:limit]
    chat = _chat(model, template) if mask else None
    shown = [_as_json(row, chat) for row in rows]
    if as_json:
        print_json({"source": name, "adapter": loaded.adapter, "identity": loaded.identity, "rows": shown})
        return
    for row, content in zip(rows, shown, strict=True):
        _print_row(loaded.places[row.id], content)
    counts = f"{len(loaded.rows)} usable rows, {len(loaded.problems)} unusable"
    print(f"{counts} (adapter {loaded.adapter}, identity {loaded.identity})")
    next_commands(f"safeserve data check {name}")


@app.command()
def check(
    name: str = NAME,
    against: list[str] = typer.Option(
        ["starter/eval_harmful", "starter/eval_look_alike", "starter/eval_helpful"],
        "--against",
        help="Evaluation prompts that training data must not contain. Repeatable.",
    ),
    max_words: int = typer.Option(1000, "--max-words", min=1, help="Rows with more words are overlong."),
    strict: bool = typer.Option(False, "--strict", help="Exit code 2 when an error is found."),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Check the first rows only."),
    root: Path | None = ROOT,
    mapping: list[str] = MAP,
    holds: Holds | None = AS,
    kind: KindName | None = KIND,
    label: LabelName | None = LABEL,
    as_json: bool = JSON,
) -> None:
    """Duplicates, contradictions, label conflicts, leaks, length bias, overlap with evaluation prompts."""
    from safeserve.core.errors import UserError
    from safeserve.data import checks
    from safeserve.data.sources import load_prompts

    loaded = _load(name, root, mapping, holds, kind, label).limited(limit)
    prompts = [prompt for other in against if other != name for prompt in load_prompts(other, root).rows]
    findings = checks.check(loaded, prompts, max_words)
    if as_json:
        print_json(
            {
                "source": name,
                "file": str(loaded.file),
                "adapter": loaded.adapter,
                "identity": loaded.identity,
                "rows": len(loaded.rows),
                "against": against,
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        _print_findings(name, loaded, findings)
    errors = sum(finding.severity == "error" for finding in findings)
    if strict and errors:
        raise UserError(f"{name}: {errors} kinds of errors found.")


@app.command()
def get(
    names: list[str] = typer.Argument(help="Names of `safeserve data list`."),
    root: Path | None = typer.Option(None, "--root", help="Put the files into this folder of public data instead."),
    as_json: bool = JSON,
) -> None:
    """Fetch sources into the cache (or a folder), each pinned by revision or sha256."""
    from safeserve.data.catalogue import get_source
    from safeserve.data.fetching import fetch_into, locate

    sources = {name: get_source(name) for name in names}
    paths = {name: str(fetch_into(each, root) if root else locate(each)) for name, each in sources.items()}
    if as_json:
        print_json(paths)
        return
    for name, path in paths.items():
        print(f"{name}  {path}")
    next_commands(f"safeserve data check {names[0]}")


def parse_map(pairs: list[str]) -> dict[str, str]:
    """``["prompt=question"]`` as a dictionary.

    Raises:
        UserError: an item without ``=``.
    """
    from safeserve.core.errors import UserError

    mapping: dict[str, str] = {}
    for pair in pairs:
        ours, separator, theirs = pair.partition("=")
        if not separator or not ours or not theirs:
            raise UserError(f"--map {pair}: expected OUR_FIELD=COLUMN, for example --map prompt=question.")
        if mapping.setdefault(ours, theirs) != theirs:
            raise UserError(f"--map {ours}: given twice, as {mapping[ours]} and as {theirs}.")
    return mapping


def _load(
    name: str,
    root: Path | None,
    mapping: list[str],
    holds: Holds | None,
    kind: KindName | None,
    label: LabelName | None,
) -> Any:
    from safeserve.data.sources import load_any

    return load_any(
        name,
        root,
        parse_map(mapping),
        holds=holds.value if holds else None,
        kind=kind.value if kind else None,
        label=label.value if label else None,
    )


def _chat(model: str, template: str | None) -> Any:
    from safeserve.cli.common import quiet_libraries
    from safeserve.models.loading import load

    quiet_libraries()
    return load(model, template=template, device="cpu", quiet=True).chat


def _as_json(row: Any, chat: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from safeserve.data.mask import masked_segments, responses

    if chat is None:
        return asdict(row)
    rendered = {
        name: [
            {"text": text, "loss": loss, "tokens": tokens}
            for text, loss, tokens in masked_segments(chat, row.messages, response)
        ]
        for name, response in responses(row).items()
    }
    return {"id": row.id, "rendered": rendered}


def _print_row(place: str, content: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(harmless(text), style=style))

    say(f"--- {content['id']}  ({place})", "bold")
    for name, segments in content.get("rendered", {}).items():
        tokens = sum(segment["tokens"] for segment in segments)
        counted = sum(segment["tokens"] for segment in segments if segment["loss"])
        say(f"{name}: {tokens} tokens, loss on {counted}", "italic")
        for segment in segments:
            # Brackets carry the meaning where there are no colours (a pipe, NO_COLOR, a colour-blind reader).
            text = f"[[LOSS {segment['text']} LOSS]]" if segment["loss"] else segment["text"]
            say(text, "green" if segment["loss"] else "dim")
    if "rendered" not in content:
        for key, value in content.items():
            if key == "messages":
                for message in value:
                    say(f"{message['role']}: {message['content']}")
            elif key != "id" and value not in (None, "", (), {}):
                say(f"{key}: {value}")
    console.print()


def _print_findings(name: str, loaded: Any, findings: list[Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    console.print(Text(f"{name}: {len(loaded.rows)} usable rows of {loaded.file} (adapter {loaded.adapter})"))
    styles = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    for finding in findings:
        line = Text(f"{finding.severity}: ", style=styles[finding.severity])
        console.print(line + Text(f"{finding.check}: {finding.message}", style="default"))
        for place in finding.places:
            console.print(Text(f"    {place}", style="dim"))
        if finding.count > len(finding.places) > 0:
            console.print(Text(f"    and {finding.count - len(finding.places)} more", style="dim"))
    if not findings:
        console.print("Nothing found.")
    next_commands(f"safeserve data show {name} --mask", "safeserve quickstart")


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Aligned columns without wrapping, so that the output can be searched and cut."""
    lines = [columns, *(tuple(str(row[column]) for column in columns) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
