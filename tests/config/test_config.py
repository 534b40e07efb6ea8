"""Configs: defaults, overrides, files, and the one-line refusals of `resolve`."""

import json

import pytest
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import methods, models
from distill_jax.config import describe, schema
from distill_jax.errors import UsageError


def test_defaults_fill_in_and_pass_their_own_checks():
    config = configs.resolve({})
    flat = configs.flatten(config)
    assert set(schema.SCHEMA) <= set(flat)
    for path, key in schema.SCHEMA.items():
        assert key.check(flat[path]) == flat[path], path
    assert config.student.widths == models.options("mlp")["widths"]


def test_json_round_trip_keeps_every_value():
    config = configs.resolve(
        {"data": {"only_classes": [7, 8]}, "student": {"widths": [30, 30]}, "seed": 4}
    )
    assert configs.resolve(json.loads(configs.to_json(config))) == config
    assert configs.digest(config) == configs.digest(configs.resolve(config))


def test_a_resolved_config_is_locked():
    with pytest.raises((AttributeError, KeyError)):
        configs.resolve({}).training.epoch = 3


@pytest.mark.parametrize(
    ("said", "expected"),
    [("8", 8), ("1e-3", 1e-3), ("true", True), ("False", False), ("(1, 2)", (1, 2)), ("3,4", (3, 4)),
     ("adamw", "adamw"), ("linear(8, 1)", "linear(8, 1)"), ("", "")],
)  # fmt: skip
def test_overrides_are_literals_or_text(said, expected):
    assert configs.literal(said) == expected
    assert type(configs.literal(said)) is type(expected)


REFUSED = {
    "unknown key": ({"training": {"epoch": 3}}, "training.epoch: unknown key; did you mean 'training.epochs'"),
    "unknown section": ({"trainer": {"epochs": 3}}, "trainer.epochs: unknown key; did you mean 'training.epochs'"),
    "wrong type": ({"training": {"batch_size": "many"}}, "training.batch_size='many': expected an integer >= 1"),
    "boolean for a number": ({"training": {"epochs": True}}, "training.epochs=True: expected a number > 0"),
    "number for a flag": ({"data": {"augment": {"flip": 1}}}, "data.augment.flip=1: expected true or false"),
    "out of range": ({"method": {"temperature": 0}}, "method.temperature=0: expected a number, or linear"),
    "schedule out of range": ({"method": {"temperature": "linear(4, 0)"}}, "method.temperature='linear(4, 0)': expected"),
    "not a choice": ({"schedule": {"name": "cosin"}}, "schedule.name='cosin': expected one of constant, cosine"),
    "unknown model": ({"student": {"name": "resnet_20"}}, "student.name='resnet_20': unknown model; did you mean 'resnet20'"),
    "unknown method": ({"method": {"name": "soft_targets"}}, "method.name='soft_targets': unknown method; did you mean 'soft_target'"),
    "unknown optimizer": ({"optimizer": {"name": "adam"}}, "optimizer.name='adam': unknown optimizer; did you mean 'adamw'"),
    "renamed key": ({"training": {"ema": 3}}, "training.ema: unknown key; did you mean 'training.ema_decay'"),
    "another word": ({"student": {"lr": 3}}, "student.lr: unknown key; did you mean 'optimizer.learning_rate'"),
    "unknown option": ({"student": {"width": (3,)}}, "student.width: unknown key; did you mean 'student.widths'"),
    "option's type": ({"student": {"widths": "wide"}}, "student.widths='wide': expected a list of int"),
    "method's option": ({"method": {"name": "jensen_shannon", "beta": 2.0}}, "method.beta=2.0: jensen_shannon expects a number in [0, 1]"),
    "weights sum to zero": ({"method": {"hard_weight": 0}}, "method.hard_weight=0.0: the weights sum to zero"),
    "both weights": (
        {"method": {"name": "soft_target", "hard_weight": 0, "soft_weight": 0}, "teacher": {"path": "t"}},
        "method.hard_weight=0.0, method.soft_weight=0.0: the weights sum to zero",
    ),
    "teachers' weights": ({"teacher": {"path": ("a", "b"), "weights": (0.0, 0.0)}}, "teacher.weights=(0.0, 0.0): the weights sum to zero"),
    "weights' number": ({"teacher": {"path": ("a", "b"), "weights": (1.0,)}}, "teacher.weights=(1.0,): expected 2 of them"),
    "no teacher": ({"method": {"name": "soft_target"}}, "teacher.path=(): method.name='soft_target' needs a teacher"),
    "accumulation": ({"training": {"batch_size": 10, "accumulate": 3}}, "training.accumulate=3: expected a divisor of training.batch_size=10"),
    "milestones": ({"schedule": {"name": "step"}}, "schedule.milestones=(): schedule.name='step' needs epochs"),
    "class in both": ({"data": {"only_classes": 3, "exclude_classes": 3}}, "data.exclude_classes=(3,): class 3 is in data.only_classes too"),
    "fsdp": ({"mesh": {"fsdp": 0}}, "mesh.fsdp=0: expected an integer >= 1"),
    "replicate": ({"mesh": {"replicate": ("teachers",)}}, "mesh.replicate=('teachers',): expected some of student,"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_key_the_value_and_what_was_expected(case):
    config, message = REFUSED[case]
    with pytest.raises(UsageError) as error:
        configs.resolve(config)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_differences_name_lasting_keys_alone():
    old = configs.resolve({"training": {"epochs": 3}, "logging": {"progress": "off"}})
    new = configs.resolve({"training": {"epochs": 4}, "logging": {"progress": "plain"}})
    assert configs.differences(old, new) == ["training.epochs: 3.0 there, 4.0 now"]


def test_help_names_every_key_model_and_method():
    said = describe.describe_keys()
    for path in schema.SCHEMA:
        assert f"  {path} = " in said
    for name in (*models.names(), *methods.names()):
        assert f"  {name}: " in said


def write(path, body: str):
    path.write_text(body)
    return str(path)


def test_a_file_with_an_argument_a_recipe_and_an_override(tmp_path):
    write(tmp_path / "recipes.py", "def small(): return dict(epochs=2.0)\n")
    file = write(
        tmp_path / "mine.py",
        "import recipes\nfrom ml_collections import ConfigDict\n"
        "def get_config(name='mlp'):\n"
        "    return ConfigDict(dict(student=dict(name=name), training=recipes.small()))\n",
    )
    config = configs.load(f"{file}:resnet8", {"training.batch_size": "32"})
    assert isinstance(config, ConfigDict)
    assert (config.student.name, config.training.epochs, config.training.batch_size) == (
        "resnet8",
        2.0,
        32,
    )


def test_each_folder_of_configs_has_recipes_of_its_own(tmp_path):
    """In one process, as in a study that takes configs from two places."""
    for name, seed in (("one", 1), ("two", 2), ("one", 1)):
        (tmp_path / name).mkdir(exist_ok=True)
        write(tmp_path / name / "recipes.py", f"SEED = {seed}\n")
        body = "import recipes\ndef get_config():\n    return dict(seed=recipes.SEED)\n"
        assert configs.load(write(tmp_path / name / "mine.py", body)).seed == seed


@pytest.mark.parametrize(
    ("body", "suffix", "message"),
    [
        ("x = 1\n", "", "the file defines no get_config"),
        ("def get_config(): return {}\n", ":teacher", "get_config\\(\\) takes no argument"),
        ("def get_config(): return 1 / 0\n", "", "ZeroDivisionError: division by zero"),
        ("def get_config(:\n", "", "SyntaxError"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, body, suffix, message):
    file = write(tmp_path / "mine.py", body)
    with pytest.raises(UsageError, match=message):
        configs.load(file + suffix)


def test_a_module_of_ones_own_registers_a_method(tmp_path):
    file = write(
        tmp_path / "own.py",
        "import dataclasses\nfrom distill_jax import methods\n"
        "@dataclasses.dataclass(frozen=True)\nclass Own(methods.Method):\n"
        "    power: float = 2.0\n"
        "methods.register('own', Own)\n",
    )
    wanted = {"imports": file, "method": {"name": "own", "power": 3.0}, "teacher": {"path": "t"}}
    config = configs.resolve(wanted)
    assert config.method.power == 3.0
    assert configs.resolve(json.loads(configs.to_json(config))) == config  # imported once
    with pytest.raises(UsageError, match="imports='nowhere': expected a module.*ModuleNotFound"):
        configs.resolve({"imports": "nowhere"})
    with pytest.raises(UsageError, match="imports=.*FileNotFoundError"):
        configs.resolve({"imports": str(tmp_path / "none.py")})


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        configs.load(str(tmp_path / "none.py"))
