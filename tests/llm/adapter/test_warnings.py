"""What is possible and costs more than it looks: said once, with the remedy."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
import transformers
from helpers.models import WIDTH, base_model, tokens

import hankelred_llm


def test_more_states_than_channels():
    # r=5000 on a width of 64 made 3.2 million parameters without a word
    with pytest.warns(
        UserWarning, match=rf"r={2 * WIDTH} states, more than the {WIDTH} .* {4 * WIDTH**2:,} param"
    ):
        hankelred_llm.attach(base_model(), r=2, rank_pattern={"layers.1.mlp": 2 * WIDTH})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hankelred_llm.attach(base_model(), r=WIDTH)


def train(model, folder):
    rows = [{"input_ids": row, "labels": row} for row in tokens(4, 6)]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=2, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
    )
    transformers.Trainer(model=model, args=arguments, train_dataset=rows).train()


def test_a_trainer_whose_checkpoints_lack_the_lora(tmp_path):
    # resuming started the LoRA anew, and the best model was an HRM of one step with a LoRA of another
    torch.manual_seed(0)
    base = base_model()
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model = hankelred_llm.attach(base, r=2)
    with pytest.warns(UserWarning, match="hold the HRM adapter only: .* modules with a LoRA"):
        train(model, tmp_path / "both")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the Trainer's checkpoints")
        model.save_pretrained(tmp_path / "by hand")  # as the documentation does it
        train(hankelred_llm.attach(base_model(), r=2), tmp_path / "alone")


@pytest.mark.parametrize("precision", ["autocast", "base"])
def test_overflow_in_float16_is_said_once(precision):
    # with fp16=True and too large a rate a Trainer continued with a loss of NaN from step 49, and no warning
    dtype = torch.float16 if precision == "base" else torch.float32
    model = hankelred_llm.attach(base_model().to(dtype), r=2)
    for name, parameter in model.named_parameters():
        if name.endswith((".B", ".C")):
            torch.nn.init.constant_(parameter, 1e3)
    half = torch.autocast("cpu", torch.float16, enabled=precision == "autocast")
    with half, pytest.warns(UserWarning, match="in float16 gave .* not finite .*train in bfloat16"):
        model(input_ids=tokens(2, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with half:
            model(input_ids=tokens(2, 6))


def test_finite_float16_and_other_precisions_have_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            hankelred_llm.attach(base_model().to(dtype), r=2)(input_ids=tokens(2, 6))
