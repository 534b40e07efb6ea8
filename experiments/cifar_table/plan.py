"""The rows of the table, each a student, its teacher and a method, and their configs.

Rows are trained at their published schedules, at those scaled to some epochs (`--epochs`), or all
at one short schedule (`--ranking`), which compares methods at an equal budget.
"""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax.errors import UsageError
from experiments.cifar_table import published
from experiments.cifar_table.benchmark import CONFIGS, literature
from experiments.cifar_table.teachers import Teachers, folder_of

RANKING_EPOCHS = 5.0
ASSISTANT = ("resnet8", "resnet56")  # students and teachers of the teacher-assistant paper's rows


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long the runs of a table are.

    Attributes:
      epochs: the length of a short schedule, to which milestones, warm-up and earlier stages are
        scaled; None for the published one.
      ranking: whether all methods have the schedule, rate and batch of `literature.cifar`.
    """

    epochs: float | None = None
    ranking: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; the runs of a row differ only in their seed.

    Attributes:
      dataset: "cifar100" or "cifar10".
      student: the name of its network.
      teacher: the name of the teacher's network; "" for training on the labels alone, "none" for
        methods without a teacher.
      method: a key of `literature.METHODS`; "" without a teacher.
    """

    dataset: str
    student: str
    teacher: str = ""
    method: str = ""

    @property
    def name(self) -> str:
        """Its name in `--rows`."""
        if not self.method:
            return f"{self.dataset}:{self.student}"
        return f"{self.dataset}:{self.teacher},{self.student},{self.method}"

    @property
    def folder(self) -> str:
        """Its name without characters that a file name cannot have."""
        return self.name.replace(":", "-").replace(",", "-")

    @property
    def published(self) -> tuple[float, str] | None:
        """(top-1 %, source), or None if no figure is published."""
        if not self.method:
            figure = published.ALONE[self.dataset].get(self.student)
            source = published.ALONE_SOURCES.get((self.dataset, self.student), "RepDistiller")
            return (figure, source) if figure else None
        table = published.CIFAR100 if self.dataset == "cifar100" else published.CIFAR10
        return table.get((self.teacher, self.student, self.method))

    @property
    def published_teacher(self) -> float | None:
        """The accuracy in % of the teacher with which the row was published; None if unknown."""
        if self.dataset != "cifar100":  # several sources, with teachers of their own
            return None
        return published.ALONE[self.dataset].get(self.teacher)

    @property
    def note(self) -> str:
        """How the row differs from what was published; "" for no known way."""
        return published.NOTES.get((self.dataset, self.teacher, self.student, self.method), "")


def every_row() -> list[Row]:
    """All rows: first the networks alone, then pair by pair; CIFAR-10's last."""
    alone = dict.fromkeys(name for pair in literature.PAIRS for name in pair)
    rows = [Row("cifar100", name) for name in alone]
    for teacher, student in literature.PAIRS:
        for method in literature.METHODS:
            if method == "fsp" and (teacher, student, method) not in published.CIFAR100:
                continue  # the widths of the two networks differ
            own_teacher = {"born_again": student, "mutual": "none", "ema": "none"}
            rows.append(Row("cifar100", student, own_teacher.get(method, teacher), method))
    rows.append(Row("cifar100", "deit_tiny", "resnet56", "deit"))
    rows += [Row("cifar10", name) for name in ("resnet110", "resnet20")]
    rows += [Row("cifar10", "resnet20", "resnet110", method) for method in ("kd", "at")]
    rows += [Row("cifar10", name) for name in ASSISTANT[::-1]]
    rows += [Row("cifar10", "resnet8", "resnet56", method) for method in ("kd", "kd_sum")]
    return list(dict.fromkeys(rows))


def chosen(patterns: Sequence[str], teachers: Teachers) -> list[Row]:
    """The rows that match the patterns, after the teachers that they need.

    Args:
      patterns: names of rows, in which "*" stands for any text: "cifar100:resnet56,resnet20,*".
      teachers: those that are not trained here.

    Raises:
      UsageError: a pattern matches no row, or a teacher teaches none of them.
    """
    rows = every_row()
    found: dict[Row, None] = {}
    for pattern in patterns:
        matching = [row for row in rows if fnmatch.fnmatchcase(row.name, pattern)]
        if not matching:
            raise UsageError(
                f"--rows={pattern}: no such row; expected DATASET:TEACHER,STUDENT,METHOD or "
                "DATASET:STUDENT, with * for any, such as cifar100:resnet56,resnet20,*"
            )
        found |= dict.fromkeys(matching)
    needed = {(row.dataset, row.teacher) for row in found if row.teacher not in ("", "none")}
    for key, teacher in teachers.items():
        if key not in needed:
            raise UsageError(
                f"--teacher={teacher.given}: {teacher.network} on {teacher.dataset} teaches none "
                f"of the chosen rows; expected a teacher of --rows={','.join(patterns)}"
            )
    trained = {Row(*key) for key in needed if key not in teachers}
    return [row for row in rows if row in trained or row in found]


def config_of(
    row: Row,
    seed: int,
    root: pathlib.Path,
    schedule: Schedule,
    overrides: Mapping[str, str],
    teachers: Teachers,
    *,
    runs: pathlib.Path | None = None,
) -> ConfigDict:
    """The resolved config of one run.

    Args:
      row: the row.
      seed: one of its seeds.
      root: the workdir, with the given teachers.
      schedule: how long it is.
      overrides: keys of the command line, for every run.
      teachers: those that are not trained here.
      runs: the folder of the table's runs, with the teachers that are trained, of which a student
        has that of seed 0; `root` by default.
    """
    given = teachers.get((row.dataset, row.teacher))
    trained = (runs or root) / run_name(Row(row.dataset, row.teacher), 0, teachers)
    path = str(folder_of(given, root) if given else trained)
    if row.dataset == "cifar10" and row.student in ASSISTANT:
        config = literature.teacher_assistant(row.student, path, row.method)
    elif row.dataset == "cifar10":
        config = _zoo(row, path)
    elif not row.method:
        config = literature.cifar(row.dataset, row.student)
    elif row.method == "deit":
        config = literature.transformer(row.dataset, path)
    else:
        config = literature.distilled(row.dataset, row.teacher, row.student, row.method, path)
    flat = configs.flatten(config)
    flat["seed"] = seed
    if schedule.epochs is not None:
        flat = _shortened(flat, schedule.epochs)
    if schedule.ranking:
        flat |= _of_ranking(row, flat["training.epochs"])
    return configs.resolve(configs.apply_overrides(configs.unflatten(flat), overrides))


def _zoo(row: Row, path: str) -> ConfigDict:
    """A row of CIFAR-10, by the recipe of the Knowledge-Distillation-Zoo; AT uses three maps."""
    role = "student" if row.method else "teacher" if row.student == "resnet110" else "baseline"
    config = configs.load(f"{CONFIGS / 'cifar10_hinton.py'}:{role}").copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.track_test = True
        config.evaluation.every_epochs = 1.0
        config.data.validation = 500
        config.student.bn_unbiased = True
        if row.method:
            config.teacher.path = (path,)
    if row.method == "at":
        flat = {k: v for k, v in configs.flatten(config).items() if not k.startswith("method.")}
        flat |= {"method.name": "at", "method.soft_weight": 1000.0 / 3}
        return ConfigDict(configs.unflatten(flat))
    return config


def _shortened(flat: dict, epochs: float) -> dict:
    """The config with its schedule scaled to `epochs`."""
    scale = epochs / flat["training.epochs"]
    flat["training.epochs"] = epochs
    flat["schedule.milestones"] = tuple(
        milestone * scale for milestone in flat.get("schedule.milestones", ())
    )
    flat["schedule.warmup_epochs"] = flat.get("schedule.warmup_epochs", 0.0) * scale
    name = flat.get("method.name", "supervised")
    if name in ("ab", "ft", "fsp"):
        flat["method.init_epochs"] = 30.0 * scale
    elif name in ("dkd", "review"):
        flat["method.warmup_epochs"] = 20.0 * scale
    flat["evaluation.every_epochs"] = max(flat["evaluation.every_epochs"] * scale, epochs / 4)
    flat["checkpoint.every_epochs"] = epochs / 10
    return flat


def _of_ranking(row: Row, epochs: float) -> dict:
    """What is the same for all methods of a ranking, over whatever a method's own recipe has."""
    shared = configs.flatten(literature.cifar(row.dataset, row.student))
    milestones = tuple(
        milestone * epochs / shared["training.epochs"]
        for milestone in shared["schedule.milestones"]
    )
    keys = [key for key in shared if key.startswith(("optimizer.", "schedule."))]
    return {
        **{key: shared[key] for key in keys},
        "optimizer.nesterov": False,
        "schedule.milestones": milestones,
        "training.batch_size": shared["training.batch_size"],
        "data.validation": 0,
    }


def run_name(row: Row, seed: int, teachers: Teachers) -> str:
    """The folder of a run in the table's workdir; one with a given teacher has its fingerprint."""
    given = teachers.get((row.dataset, row.teacher)) if row.method else None
    taught = f"-teacher{given.saved.fingerprint[:8]}" if given else ""
    return f"{row.folder}{taught}-seed{seed}"
