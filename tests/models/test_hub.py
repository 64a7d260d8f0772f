"""Upload to the hub: what goes up, and every way it can be refused; the hub itself is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safeserve.core.errors import EnvironmentFault, UserError
from safeserve.models.hub import push_folder


class Hub:
    """Notes what it was asked for."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails = fails

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append((repo, options))
        if self.fails:
            raise self.fails

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append((options["repo_id"], options))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A merged model's folder."""
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_folder_is_uploaded_and_private_unless_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert push_folder(model, "me/mine") == "https://hub/commit/1"
    (created, options), (_, upload) = hub.calls
    assert (created, options["private"]) == ("me/mine", True)
    assert not any(pattern in ("*", "*.bin", "*.py", "*.pt") for pattern in upload["allow_patterns"])


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "/x", "x/"])
def test_names_of_another_form(model: Path, repo: str) -> None:
    with pytest.raises(UserError, match="ORG/NAME"):
        push_folder(model, repo)


@pytest.mark.parametrize("base", ["../sit", "/models/base", "smollm2-135m-instruct@wheel"])
def test_an_adapter_of_a_local_base_must_be_merged(tmp_path: Path, base: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (tmp_path / "adapter_model.safetensors").write_text("")
    with pytest.raises(UserError, match="models merge"):
        push_folder(tmp_path, "me/mine")


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder"):
        push_folder(tmp_path, "me/mine")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        push_folder(tmp_path, "me/mine")


def test_what_the_hub_refuses_is_the_environments_fault(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(PermissionError("401 Unauthorized\nlong text")))
    with pytest.raises(EnvironmentFault, match=r"401 Unauthorized\)\. Log in: hf auth login"):
        push_folder(model, "me/mine")
