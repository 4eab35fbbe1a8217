"""A recipient's first contact: the card says what an adapter is, how to load it, what KeyError means."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from helpers.models import adapted, base_model
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model

from hankelred_llm import HRMConfig, attach
from hankelred_llm.adapter.model_card import card_text, write_card
from hankelred_llm.errors import ConfigError
from hankelred_llm.experiments.methods import save_adapter


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


@pytest.mark.parametrize("heading", ["# Mine", "# HRM adapters of our group", "Two of them.", "## Contents"])
@pytest.mark.parametrize("save", ["save_pretrained", "export_static"])
def test_a_card_of_the_user_may_quote_the_headings(tmp_path, heading, save):
    # a card with "## HRM adapter" anywhere in it was taken for a generated one, and its text was lost
    model = adapted(r=6, site="attention", static_readouts=["q_proj"])
    own = (
        f"{heading}\n\n## HRM adapter\n\nOur notes.\n\n# Model Card for Model ID\n\n"
        "# HRM adapter for a base\n\n# LoRA exported from an HRM adapter for a base\n"
    )
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\n\n{own}", encoding="utf-8")
    getattr(model, save)(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert own.strip() in card.text and "How to load it" not in card.text
    assert "hankelred" in card.data.tags and card.data.license == "mit"


@pytest.mark.parametrize("save", ["save_pretrained", "export_static"])
def test_a_form_of_peft_that_is_filled_in_stays(tmp_path, save):
    # what a user had written under the form's own headings was lost, because its title was still there
    lora = get_peft_model(base_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "# Model Card for Model ID" in card.text and "- PEFT" in card.text
    model = adapted(r=6, site="attention", static_readouts=["q_proj"])
    shutil.copytree(tmp_path, tmp_path / "empty")
    getattr(model, save)(tmp_path / "empty")
    assert "How to load it" in (tmp_path / "empty" / "README.md").read_text()
    card.text = card.text.replace("[More Information Needed]", "Sensor logs.", 1)
    card.save(tmp_path / "README.md")
    getattr(model, save)(tmp_path)
    again = ModelCard.load(tmp_path / "README.md")
    assert again.text.strip() == card.text.strip() and "hankelred" in again.data.tags


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
    config = HRMConfig(
        r=2,
        base_model_name_or_path="a\nb",
        revision="main",
        training_data="task flip_flop, rows of length 64",
    )
    text = card_text(config)
    assert "task flip_flop, rows of length 64" in text and "a\\nb (revision main)" in text
    write_card(tmp_path, config)
    assert "**Training data:** task flip_flop" in (tmp_path / "README.md").read_text()


def test_data_stay_named_when_the_model_is_saved_again(tmp_path):
    # the next save_pretrained replaced what was named by "not recorded"
    model = adapted(r=6)
    save_adapter(model, tmp_path, data="task flip_flop")
    first = (tmp_path / "README.md").read_text()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == first and "**Training data:** task flip_flop" in first


def test_data_stay_named_when_the_adapter_is_loaded_and_saved_again(tmp_path):
    """The card of a loaded adapter named its training data, and the next save wrote "not recorded" over it.

    They were kept in memory only, and the configuration that was loaded had none.
    """
    save_adapter(adapted(r=6), tmp_path / "first", data="task flip_flop")
    model = PeftModel.from_pretrained(base_model(), str(tmp_path / "first"))
    for folder in ("first", "second"):
        model.save_pretrained(tmp_path / folder)
        assert "**Training data:** task flip_flop\n" in (tmp_path / folder / "README.md").read_text()
    # another adapter in the same folder was not trained on them
    adapted(r=4).save_pretrained(tmp_path / "first")
    assert "**Training data:** not recorded" in (tmp_path / "first" / "README.md").read_text()


def test_data_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match=r"training_data=\['a', 'b'\] must be a text"):
        HRMConfig(training_data=["a", "b"])


@pytest.mark.slow
def test_without_the_import_peft_says_key_error(tmp_path):
    # what the card explains; if peft says something else one day, the card has to follow
    adapted(r=6).save_pretrained(tmp_path)
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith("KeyError: 'HRM'")
