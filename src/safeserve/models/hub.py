"""Upload to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.core.runs import read_json


def push_folder(folder: Path, repo: str, *, private: bool = True) -> str:
    """Upload a model folder as ``repo`` (ORG/NAME); returns the address of the commit.

    Only weights in safetensors, JSON, text and the card go up: what else lies in the folder stays here.

    Raises:
        UserError: no model there, an adapter whose base is not on the hub, or no name of the form ORG/NAME.
        EnvironmentFault: not logged in, no permission, no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"{folder}: not a model folder (no config.json and no adapter_config.json).")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors file, so there is nothing to serve in it.")
    config = folder / "adapter_config.json"
    base = str(read_json(config).get("base_model_name_or_path")) if config.is_file() else "ORG/NAME"
    if base.count("/") != 1 or base.startswith((".", "/", "~")) or "@" in base:
        raise UserError(f"{folder}: an adapter of {base}, which is not on the hub. First: safeserve models merge.")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UserError(f"{repo}: give the repository as ORG/NAME.")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        patterns = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "README.md"]
        return str(api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=patterns).commit_url)
    except HFValidationError as error:
        raise UserError(f"{repo}: {error}") from None
    except Exception as error:  # no token, no right, no network: the hub's client has a class of its own for each
        reason = str(error).strip().splitlines()[0]
        raise EnvironmentFault(f"{repo}: the hub did not take it ({reason}). Log in: hf auth login.") from None
