"""Names of models on the command line: paths that are not there, and a hub that does not answer."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from hankelred_llm._util.model_names import refuse_absent_path, refuse_unreachable
from hankelred_llm.errors import ExperimentError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty working directory, with a folder of a training that has no adapter yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "training").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "/abs/gone",
        "./gone",
        "../gone",
        "~/gone",
        "gone/",
        "a/b/c",
        "training/adapter",
        "two words",
        "a\\b",
        "",
    ],
)
def test_paths_that_are_not_there_are_refused(folder, name):
    """`spectra training/adapter` asked the hub for a repository of this name, six times within 30 seconds."""
    with pytest.raises(ExperimentError, match=r"there is no folder .*give the folder of a model"):
        refuse_absent_path(name)
    with pytest.raises(ExperimentError):
        refuse_absent_path(None, "gpt2", name)


@pytest.mark.parametrize("name", ["gpt2", "small", "mistralai/Mistral-7B-v0.1", "training", "gone/adapter"])
def test_names_of_repositories_and_what_is_there_pass(folder, name):
    refuse_absent_path(name)


def answering(monkeypatch, error):
    """Let the hub raise an error; return the names that it was asked for."""
    asked = []

    def model_info(self, name, **options):
        asked.append(name)
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return asked


def test_a_hub_that_cannot_be_reached_is_asked_once(folder, monkeypatch):
    """Relative: of a name that could be on the hub, without a network."""
    asked = answering(monkeypatch, ConnectionError("Name or service not known"))
    with pytest.raises(
        ExperimentError, match=r"no folder gone/adapter here, and the hub cannot be asked .*not known"
    ):
        refuse_unreachable("gone/adapter", "config.json", None)
    assert asked == ["gone/adapter"]
    refuse_unreachable("training", "config.json", None)  # a folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse_unreachable("gone/adapter", "config.json", None)
    assert len(asked) == 1


def test_what_is_in_the_cache_needs_no_network(folder, monkeypatch):
    asked = answering(monkeypatch, ConnectionError("no network"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "cache/config.json")
    refuse_unreachable("org/model", "config.json", None)
    assert not asked


def test_an_answer_of_the_hub_is_left_to_the_loading(folder, monkeypatch):
    """A repository that is not there, or private, has messages of its own."""
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    asked = answering(monkeypatch, error)
    refuse_unreachable("org/model", "config.json", "main")
    assert asked == ["org/model"]
