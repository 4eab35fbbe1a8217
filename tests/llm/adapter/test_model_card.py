"""A recipient's first contact: the card says what an adapter is, how to load it, what KeyError means."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.models import adapted, base_model
from huggingface_hub import ModelCard

from hankelred_llm import HRMConfig, attach
from hankelred_llm.adapter.model_card import card_text, write_card


def test_the_card_is_ours(tmp_path):
    # it was peft's empty form, "Model Card for Model ID", without a word of hankelred_llm
    model = adapted(r=6)
    base = tmp_path / "base"
    model.get_base_model().config.save_pretrained(base)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert {"hankelred", "transformers"} <= set(card.data.tags)
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-generation"
    for part in (
        "pip install 'hankelred[llm]'",
        "import hankelred_llm",
        f"**Base model:** {base}",
        "6 real states",
        "PeftModel.from_pretrained",
        "cannot be merged",
        "KeyError: 'HRM'",
        "**Training data:** not recorded",
    ):
        assert part in card.text
    assert "Model ID" not in card.text


def test_a_card_of_the_user_stays_and_is_tagged(tmp_path):
    model = adapted(r=6)
    model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\ntags: [mine]\nlicense: mit\n---\n# Mine\n", encoding="utf-8")
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "# Mine" in card.text and "HRM adapter" not in card.text
    assert "hankelred" in card.data.tags and card.data.license == "mit"


def test_saved_twice_is_saved_once(tmp_path):
    model = adapted(r=6)
    model.save_pretrained(tmp_path)
    first = (tmp_path / "README.md").read_text()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == first


def test_a_named_adapter_has_a_card_in_its_folder(tmp_path):
    model = attach(base_model(), r=2)
    model.add_adapter("second", HRMConfig(r=3))
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert "3 real states" in (tmp_path / "second" / "README.md").read_text()
    assert "3 real states" in (tmp_path / "README.md").read_text()
    model.save_pretrained(tmp_path)
    assert "2 real states" in (tmp_path / "README.md").read_text()


def test_other_processes_write_no_card(tmp_path):
    adapted(r=6).save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "README.md").exists()


def test_data_are_named_where_they_are_known(tmp_path):
    config = HRMConfig(r=2, base_model_name_or_path="a\nb", revision="main")
    text = card_text(config, "task flip_flop, rows of length 64")
    assert "task flip_flop, rows of length 64" in text and "a\\nb (revision main)" in text
    write_card(tmp_path, config, "texts")
    assert "**Training data:** texts" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_without_the_import_peft_says_key_error(tmp_path):
    # what the card explains; if peft says something else one day, the card has to follow
    adapted(r=6).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith("KeyError: 'HRM'")
