"""``safeserve models list|get|merge|export|push``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer

from safeserve.cli.common import next_commands, print_json, quiet_libraries
from safeserve.cli.run import JSON

app = typer.Typer(help="Models: the embedded one, and those of your runs.", no_args_is_help=True)


@app.command("list")
def list_models(
    runs: Path = typer.Option(Path("runs"), "--runs", help="Folder with runs."), as_json: bool = JSON
) -> None:
    """The embedded model and every model in the runs folder."""
    from safeserve.models import embedded

    cached = embedded.is_sound(embedded.model_folder())
    rows: list[dict[str, Any]] = [
        {"name": embedded.NAME, "kind": "embedded", "licence": "Apache-2.0", "cached": cached},
        {"name": embedded.HUB_NAME, "kind": "hub", "source": embedded.HUB_ID},
    ]
    for folder in sorted(runs.glob("*/models/[!.]*/")):
        kind = "adapter" if (folder / "adapter_config.json").exists() else "merged"
        rows.append({"name": str(folder), "kind": kind})
    if as_json:
        print_json(rows)
    else:
        about = {"embedded": f"embedded, Apache-2.0, {'cached' if cached else 'not fetched yet (about 93 MB)'}"}
        about["hub"] = f"{embedded.HUB_ID} on the hub"
        print("\n".join(f"{row['name']}  {about.get(row['kind'], row['kind'])}" for row in rows))
    next_commands(f"safeserve eval {embedded.NAME} --suite starter", "safeserve quickstart")


@app.command()
def get() -> None:
    """Fetch the embedded model now, so that everything after works without a network."""
    from safeserve.models import embedded

    quiet_libraries()
    folder = embedded.fetch()
    if not embedded.is_sound(folder, deep=True):
        from safeserve.core.errors import EnvironmentFault

        raise EnvironmentFault(f"{folder}: its weights changed on disk. Delete the folder and run this again.")
    print(folder)
    next_commands("safeserve quickstart")


@app.command()
def merge(
    model: str = typer.Argument(help="An adapter folder, for example runs/NAME/models/dpo."),
    out: Path = typer.Argument(help="Folder for the merged model; must not exist."),
    dtype: str = typer.Option("bfloat16", "--dtype", help="float32 or bfloat16."),
) -> None:
    """Merge an adapter into its base and save plain safetensors that any runtime loads."""
    from safeserve.core.errors import UserError
    from safeserve.models.loading import load, save_merged

    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype: {dtype} is neither float32 nor bfloat16.")
    if out.exists():
        raise UserError(f"{out}: exists already. Give a new folder.")
    quiet_libraries()
    loaded = load(model, dtype="float32")
    save_merged(loaded, out, dtype)
    _copy_card(model, out)
    print(out)
    next_commands(*_serving(out), f"safeserve eval {shlex.quote(str(out))} --suite starter")


@app.command()
def export(
    model: str = typer.Argument(help="A model or adapter folder, or the embedded model's name."),
    out: Path = typer.Argument(help="The GGUF file to write; must not exist."),
    kind: str = typer.Option("f16", "--type", help="Of the matrices: f32, f16, bf16 or q8_0."),
) -> None:
    """Write a model, an adapter merged into it, as GGUF for llama.cpp and Ollama."""
    from typing import get_args

    from safeserve.core.errors import UserError, did_you_mean
    from safeserve.models.gguf_export import Kind, export_gguf
    from safeserve.models.loading import load

    if kind not in get_args(Kind):
        raise UserError(f"--type: unknown type {kind!r}.{did_you_mean(kind, get_args(Kind))}")
    if out.exists():
        raise UserError(f"{out}: exists already. Give another file.")
    quiet_libraries()
    export_gguf(load(model, dtype="float32", device="cpu"), out, kind)  # type: ignore[arg-type]  # checked above
    print(out)
    file = shlex.quote(str(out))
    name = shlex.quote(out.stem.lower())
    next_commands(
        f"llama-server -m {file} --jinja",
        f"printf 'FROM %s\\n' {shlex.quote(str(out.resolve()))} > Modelfile && ollama create {name} -f Modelfile",
    )


@app.command()
def push(
    folder: Path = typer.Argument(help="A model folder: merged, or an adapter of a run."),
    repo: str = typer.Argument(help="Where to on the Hugging Face hub: ORG/NAME."),
    public: bool = typer.Option(False, "--public", help="Make a new repository public; without it, it is private."),
) -> None:
    """Upload a model folder with its card to the Hugging Face hub (log in with `hf auth login` first)."""
    from safeserve.models.hub import push_folder

    quiet_libraries()
    print(push_folder(folder, repo, private=not public))
    next_commands(f"safeserve eval {repo} --suite starter")


def _copy_card(model: str, out: Path) -> None:
    """The model's card goes with its merged weights, which are a library's own model then, and no adapter."""
    card = Path(model).expanduser() / "README.md"
    if card.is_file():
        from safeserve.core.runs import write_text

        text = card.read_text(encoding="utf-8")
        write_text(out / "README.md", text.replace("library_name: peft", "library_name: transformers", 1))


def _serving(folder: Path) -> list[str]:
    """Commands that serve a merged model."""
    path = shlex.quote(str(folder))
    gguf = shlex.quote(f"{folder}.gguf")
    return [f"vllm serve {path}", f"transformers serve {path}", f"safeserve models export {path} {gguf}"]
