"""The settings of the study, with the number of seeds and the paper's test errors.

Every run is one of the roles of `configs/mnist_hinton.py` with the overrides of this file, so each
can be repeated by itself with `distill-jax train`. Left out on purpose: the paper's sections on
speech and on specialists, which need other data.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax.errors import unknown

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "mnist_hinton.py"
FEW = {
    "data.fraction": "0.03",
    "training.batch_size": "128",
    "training.epochs": "100",
    "evaluation.every_epochs": "10",
}
TEMPERATURES = {30: (1, 2, 2.5, 3, 4, 6, 8, 20), 300: (1, 4, 8, 20)}  # width -> T


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table: runs that differ only in their seed.

    Attributes:
      name: the start of the names of its runs' folders.
      part: its name in `--parts`.
      title: its title in the table.
      role: a role of `configs/mnist_hinton.py`.
      overrides: changes of the role's config.
      seeds: the number of seeds.
      paper: the paper's test errors, of 10,000; None if it gives none.
      biases: classes whose biases are corrected after training, with one common offset.
      offset: that offset; the search chose it on held-out images (results/search.json).
    """

    name: str
    part: str
    title: str
    role: str
    overrides: Mapping[str, str]
    seeds: int = 3
    paper: int | None = None
    biases: tuple[int, ...] = ()
    offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a setting and a seed."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """The folder of the run in the study's workdir."""
        return f"{self.setting.name}-seed{self.seed}"

    @property
    def teacher(self) -> str:
        """The folder of the run that trains its teacher, the one with the same seed."""
        return f"teacher-seed{self.seed}"

    @property
    def answers(self) -> str:
        """The folder of that teacher's answers to the training images."""
        return f"answers-seed{self.seed}"


def _narrow(width: int, learning_rate: float) -> tuple[Setting, ...]:
    """Students with two layers of `width` units, with hard targets and at every temperature."""
    shared = {
        "student.widths": f"({width}, {width})",
        "optimizer.learning_rate": f"{learning_rate}",
        "training.epochs": "30",
    }
    part = f"units{width}"
    hard = Setting(part + "-hard", part, f"2x{width}, hard targets", "baseline", shared)
    soft = (
        Setting(
            f"{part}-t{temperature:g}",
            part,
            f"2x{width}, T = {temperature:g}",
            "student",
            {**shared, "method.temperature": f"{temperature:g}"},
        )
        for temperature in TEMPERATURES[width]
    )
    return (hard, *soft)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "teacher", "teacher", "Teacher: 2x1200, dropout, weight constraint, jitter", "teacher", {},
        paper=67,
    ),
    Setting("hard", "hard", "2x800, hard targets", "baseline", {}, paper=146),
    Setting("soft", "soft", "2x800, soft targets, T = 20", "student", {}, paper=74),
    Setting(
        "without3", "without3", "2x800, no 3 in the transfer set", "student",
        {"data.exclude_classes": "(3,)"},
        paper=206, biases=(3,), offset=3.5,
    ),
    Setting(
        "only78", "only78", "2x800, only 7 and 8 in the transfer set", "student",
        # Hard targets that are all 7 or 8 would only lower the biases of the other classes.
        {"data.only_classes": "(7, 8)", "method.hard_weight": "0"},
        paper=4730, biases=(7, 8), offset=-7.4,
    ),
    *_narrow(300, learning_rate=0.003),
    *_narrow(30, learning_rate=0.01),
    Setting("few-hard", "few", "2x800, 3 % of the data, hard targets", "baseline", FEW),
    Setting("few-soft", "few", "2x800, 3 % of the data, soft targets, T = 20", "student", FEW),
)  # fmt: skip

PARTS = tuple(dict.fromkeys(setting.part for setting in SETTINGS))


def runs(parts: Sequence[str] = (), most_seeds: int | None = None) -> list[Run]:
    """The runs of the study in the order of training: first the first seed of every setting.

    Args:
      parts: some of `PARTS`; () for all. The teacher is always included, since students need it.
      most_seeds: the most seeds of a setting; None for all that are planned.

    Raises:
      UsageError: an unknown part.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown("--parts", part, PARTS, "part")
    chosen = [s for s in SETTINGS if not parts or s.part in parts or s.role == "teacher"]
    most = max(setting.seeds for setting in chosen)
    return [
        Run(setting, seed)
        for seed in range(most if most_seeds is None else min(most, most_seeds))
        for setting in chosen
        if seed < setting.seeds
    ]


def config_of(
    run: Run, root: pathlib.Path, overrides: Mapping[str, str], epochs_scale: float = 1.0
) -> ConfigDict:
    """The resolved config of a run.

    Args:
      run: the run.
      root: the study's workdir, with the teachers and their answers.
      overrides: keys of the command line, for every run; they take precedence over the setting's.
      epochs_scale: factor of the epochs and of the warm-up.

    Raises:
      UsageError: an override is not valid.
    """
    own = {**run.setting.overrides, "seed": str(run.seed)}
    if run.setting.role == "student":
        own["teacher.path"] = str(root / run.teacher)
        own["teacher.store"] = str(root / run.answers)
    flat = configs.flatten(configs.load(f"{CONFIG}:{run.setting.role}", {**own, **overrides}))
    for key in ("training.epochs", "schedule.warmup_epochs"):
        flat[key] *= epochs_scale
    return configs.resolve(configs.unflatten(flat))


def digest(config: ConfigDict) -> str:
    """SHA-256 of a config without the paths of this machine."""
    flat = configs.flatten(config)
    flat["data.path"] = flat["data.tfds_dir"] = ""
    for key, name in (("teacher.path", ("teacher",)), ("teacher.store", "answers")):
        if flat[key]:
            flat[key] = name
    return configs.digest(configs.resolve(configs.unflatten(flat)))
