"""Settings of strangers: what would end in no answer, or in one of another package, is refused at once."""

from __future__ import annotations

import time

import pytest

from hankelred import HankelredError
from hankelred_llm.cli.settings_options import flag_values
from hankelred_llm.errors import ExperimentError
from hankelred_llm.experiments.experiment import open_experiment
from hankelred_llm.experiments.methods import parse_method
from hankelred_llm.experiments.settings import Settings, read_settings
from hankelred_llm.tasks import TaskError, get_task

#: Nine lists of nine times the one before: 400 bytes, and 387 million entries when written out.
BOMB = ", ".join(f"&a{k} [{', '.join([f'*a{k - 1}' if k else 'x'] * 9)}]" for k in range(9))


def refused(call, *parts):
    began = time.process_time()
    with pytest.raises(HankelredError) as error:
        call()
    message = str(error.value)
    assert time.process_time() - began < 2
    assert "\n" not in message and len(message) < 1000 and all(part in message for part in parts), message


def written(tmp_path, text):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "field", ["task", "steps", "seeds", "task_options", "learning_rates", "methods", "out", "dtype", "chunk"]
)
def test_a_yaml_bomb_is_refused_by_key(tmp_path, field):
    # the message wrote the value out: killed after 40 s, growing by 1 to 2 GB a second
    value = f"{{x: [{BOMB}]}}" if field == "task_options" else f"[{BOMB}]"
    file = written(tmp_path, f"task: parity\n{field}: {value}\n".replace("task: parity\ntask:", "task:"))
    refused(lambda: read_settings(file, {}), field)


@pytest.mark.parametrize("text", ["[" * 100_000, "task: " + "[" * 100_000 + "]" * 100_000])
def test_deep_nesting_is_no_yaml(tmp_path, text):
    file = written(tmp_path, text)
    refused(lambda: read_settings(file, {}), "is no YAML")


def test_deep_nesting_on_the_command_line_stays_a_text():
    # a RecursionError came out
    text = "[" * 10_000
    assert flag_values({"task_options": (f"x={text}",)})["task_options"] == {"x": text}
    refused(lambda: parse_method(f"hrm r={text}"), "is no value")
    refused(lambda: parse_method("hrm r=["), "is no value")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("weight_decay", value) for value in (float("nan"), float("inf"), "nan", "1e400", 10**400)),
        *(
            ("learning_rates", value)
            for value in ([float("nan")], [float("inf")], {"hrm": ["nan"]}, [10**400])
        ),
        *(("length", value) for value in (10**12, 10**5000, -1)),
        ("test_lengths", [10**12]),
        ("tuning_lengths", [0]),
        ("seeds", [2**32]),
        ("tuning_seeds", [-1]),
        ("steps", 10**12),
        ("out", "a\0b"),
        ("task_options", {"x": [[[[[[[[[[1]]]]]]]]]]}),
        ("task_options", {"x": list(range(20_000))}),
    ],
    ids=lambda value: str(type(value).__name__ if isinstance(value, int) else value)[:30],
)
def test_numbers_that_no_run_can_have(field, value):
    # NaN and infinite rates and lengths of 1e12 were accepted
    refused(lambda: Settings(task="parity", **{field: value}), field)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "3"}, "steps is '3'; it should be a valid integer"),
        ({"steps": True}, "steps is True; it should be a valid integer"),
        ({"seeds": [0, "x"]}, "seeds[1] is 'x'; it should be a valid integer"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; give at least one, and each once"),
        ({"methods": []}, "methods is []; give at least one, and each once"),
        ({"learning_rates": {"hrm": [0.1, True]}}, "learning_rates['hrm'][1] is True; it should be a valid"),
        ({"learning_rates": []}, "learning_rates['default'] is []; it should have at least 1 item"),
        ({"learning_rates": {"hmr": 0.1}}, "learning_rates names 'hmr', which is not among methods; did you"),
        ({"weight_decay": -1}, "weight_decay is -1; it should be greater than or equal to 0"),
        ({"dtype": "float16"}, "dtype is 'float16'; it should be 'float32' or 'bfloat16'"),
        ({"validation_only": "yes"}, "validation_only is 'yes'; it should be a valid boolean"),
        ({"out": None}, "out is None; it should be a valid string"),
        ({"budget": 1.5}, "budget is 1.5; it should be a valid string"),
        ({"budget": 10**5000}, "budget is a number of thousands of digits"),
        ({"task_options": ["lag"]}, "task_options is ['lag']; it should be a valid dictionary"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_values_of_another_kind_are_named_with_what_they_should_be(values, message):
    methods = {"methods": ["hrm"]}
    refused(lambda: Settings(**{"task": "parity", **methods, **values}), message)


def test_a_value_stands_for_a_list_of_one_and_a_number_for_a_text():
    settings = Settings(task="parity", seeds=3, methods="hrm", learning_rates="1e-3", budget=4096)
    assert (settings.seeds, settings.methods, settings.budget) == ([3], ["hrm"], "4096")
    assert settings.learning_rates == {"default": [1e-3]} and settings.rates("hrm") == [1e-3]


def test_more_rows_than_can_be_drawn_are_refused_before_they_are_drawn():
    # a length of 1e9 asked for 500 GB
    with pytest.raises(TaskError, match=r"256 rows of length 1000000000 .* symbols"):
        get_task("parity").validation(10**9)
    settings = Settings(task="parity", model="small-random", methods=["lora-qv"], length=8, steps=10**8)
    refused(lambda: open_experiment(settings, settings.methods), "fewer rows or steps")


def test_a_file_of_another_kind(tmp_path):
    # reading /dev/zero ended with the memory
    file = written(tmp_path, "#" * 2**21)
    refused(lambda: read_settings(file, {}), "more than")
    refused(lambda: read_settings(tmp_path, {}), "cannot be read")
    refused(lambda: read_settings(written(tmp_path, "? " + "x" * 10**5 + "\n: 1"), {}), "unknown key")


def test_valid_settings_are_accepted_as_before(tmp_path):
    text = "task: prefix_dfa\ntask_options: {transitions: [[2, 1], [0, 3], [0, 2], [0, 3]]}\n"
    text += "learning_rates: [1e-3, 0.01]\nweight_decay: 1e-2\nseeds: [0, 4294967295]\n"
    settings = read_settings(written(tmp_path, text), {"length": 16})
    assert settings.task_options["transitions"] == [[2, 1], [0, 3], [0, 2], [0, 3]]
    assert settings.rates("lora-qv") == [1e-3, 1e-2] and settings.weight_decay == 1e-2
    with pytest.raises(
        ExperimentError, match=r"learning_rates\['default'\]\[0\] is 0; it should be greater than 0"
    ):
        Settings(task="parity", learning_rates=[0])
