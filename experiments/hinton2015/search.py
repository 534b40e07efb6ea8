"""The search behind the recipe of MNIST: trials that 5,000 images, held out of the 60,000, compare.

    python -m experiments.hinton2015.search --workdir=runs/hinton2015_search
    python -m experiments.hinton2015.search --workdir=runs/hinton2015_search --trials=sgd,adam

MNIST is read as in `run`. What was stopped resumes with the same command. The trials of `--trials`
that have finished are recorded in results/search.json, with figures of the validation split alone.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import tasks
from distill_jax.config.schema import SCHEMA
from distill_jax.errors import unknown
from distill_jax.runs import experiment, workdir
from experiments import study
from experiments.hinton2015 import analysis, plan

RECORD = "search.json"
HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("hinton2015", "search")
KEPT = ("errors", "nll", "agreement", "kl")  # of the evaluation of the validation split

# Every key that `configs/mnist_hinton.py` may set, so that a trial stays what it was when the
# recipe takes over a value.
BASE = {
    "data.validation": "5000",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": "0.2",
    "optimizer.momentum": "0.9",
    "optimizer.nesterov": "True",
    "optimizer.max_norm": "0",
    "schedule.name": "cosine",
    "schedule.warmup_epochs": "1",
    "training.batch_size": "512",
    "evaluation.every_epochs": "10",
    "checkpoint.every_epochs": "5",
}
TEACHER = {
    **BASE,
    "student.dropout": "0.5",
    "student.input_dropout": "0.2",
    "optimizer.max_norm": "3",
    "data.augment.crop_padding": "2",
    "training.epochs": "60",
}
ADAM = {"optimizer.name": "adamw", "optimizer.learning_rate": "0.002"}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training that the search compares with others.

    Attributes:
      role: a role of `configs/mnist_hinton.py`.
      overrides: changes of the role's config.
      teacher: the trial whose network teaches; "" for none.
      biases: classes whose common offset the trial is to find.
    """

    role: str
    overrides: Mapping[str, str]
    teacher: str = ""
    biases: tuple[int, ...] = ()


STUDENT = {
    **BASE,
    "optimizer.name": "adamw",
    "optimizer.nesterov": "False",
    "optimizer.learning_rate": "0.003",
    "training.batch_size": "256",
    "training.epochs": "40",
    "method.temperature": "20",
    "method.hard_weight": "0.5",
    "method.soft_weight": "1",
}
FULL = {**STUDENT, "training.epochs": "200"}

TRIALS: dict[str, Trial] = {
    "teacher-sgd": Trial("teacher", TEACHER),
    "teacher-less-dropout": Trial(
        "teacher", {**TEACHER, "student.dropout": "0.3", "student.input_dropout": "0.1"}
    ),
    "student-40": Trial("student", STUDENT, "teacher-sgd"),
    "student-120": Trial("student", {**STUDENT, "training.epochs": "120"}, "teacher-sgd"),
    "student-slower": Trial(
        "student", {**STUDENT, "optimizer.learning_rate": "0.001"}, "teacher-sgd"
    ),
    "student-soft": Trial("student", {**STUDENT, "method.hard_weight": "0"}, "teacher-sgd"),
    "teacher-adam": Trial("teacher", {**TEACHER, **ADAM}),
    "teacher": Trial("teacher", {**TEACHER, "training.epochs": "400"}),
    "soft": Trial("student", FULL, "teacher"),
    "without3": Trial("student", {**FULL, "data.exclude_classes": "(3,)"}, "teacher", (3,)),
    "only78": Trial(
        "student",
        {**FULL, "data.only_classes": "(7, 8)", "method.hard_weight": "0"},
        "teacher",
        (7, 8),
    ),
}


def config_of(trial: Trial, root: pathlib.Path, overrides: Mapping[str, str]) -> ConfigDict:
    """The resolved config of a trial; `overrides` are the command line's."""
    own = dict(trial.overrides)
    if trial.teacher:
        own["teacher.path"] = str(root / trial.teacher)
        own["teacher.store"] = str(root / f"{trial.teacher}-answers")
    return configs.load(f"{plan.CONFIG}:{trial.role}", {**own, **overrides})


def record(name: str, config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """What is kept of a finished trial: its validation figures and what identifies it."""
    trial = TRIALS[name]
    values = workdir.read_json(folder / "result.json")
    found = {
        "trial": name,
        "role": trial.role,
        "teacher": trial.teacher,
        "overrides": dict(trial.overrides),
        "seed": config.seed,
        "config_digest": plan.digest(config),
        "parameters_sha256": values["parameters_sha256"],
        "epochs": round(values["epochs"], 1),
        "wall_time_s": round(values["wall_time_s"], 1),
        "validation": {
            key: values["final"]["validation"][key]
            for key in KEPT
            if key in values["final"]["validation"]
        },
    }
    if trial.biases:
        answers = analysis.answers(config, folder)["validation"]
        found["biases"] = analysis.choose_offset(answers, trial.biases)
    return found


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser, report_only=False)
    parser.add_argument("--trials", default="", help=f"some of {','.join(TRIALS)}; all by default")
    arguments, rest = parser.parse_known_args(argv)
    study.require_workdir(arguments)
    return arguments, study.config_overrides(rest)


def chosen(names: Sequence[str]) -> list[str]:
    """The trials with these names, all of them for (), each after the one that teaches it.

    Raises:
      UsageError: a name is unknown.
    """
    for name in names:
        if name not in TRIALS:
            raise unknown("--trials", name, TRIALS, "trial")
    needed = {TRIALS[name].teacher for name in names or TRIALS} | set(names or TRIALS)
    return [name for name in TRIALS if name in needed]


def run_trials(
    names: Sequence[str], root: pathlib.Path, overrides: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Trains the trials that have not finished, one after the other; returns the record of each."""
    rows = []
    for name in names:
        config = config_of(TRIALS[name], root, overrides)
        if config.teacher.store:
            tasks.precompute(config, config.teacher.store, dtype="float32", taps=())
        experiment.run(config, root / name)
        rows.append(record(name, config, root / name))
        print(f"{name}: {rows[-1]['validation']}", flush=True)
        jax.clear_caches()  # compiled programs of many shapes fill the memory
    return rows


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the search; returns the exit code, see `study.Program.run`.

    Args:
      argv: the arguments; those of the process by default.
      home: the study's folder, which gets the record of all trials; of some, the workdir does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arguments, overrides = _arguments(argv)
        names = chosen([name for name in arguments.trials.split(",") if name])
        changed = [key for key in overrides if key not in SCHEMA or SCHEMA[key].lasting]
        trial = len(names) < len(TRIALS) or bool(set(changed) - {"data.name"})
        rows = run_trials(names, arguments.workdir, overrides)
        target = study.results_folder(home, arguments.workdir, trial=trial) / "results" / RECORD
        command = PROGRAM.command(argv)
        workdir.write_json(target, {"study": "hinton2015", "command": command, "trials": rows})
        print(target)
        return 0

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
