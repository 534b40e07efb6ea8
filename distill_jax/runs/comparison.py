"""Several runs beside each other: settings, seeds, costs, and paired differences on the test set.

Only the files of workdirs are read. Figures are those of the test split after the last step. Left
out on purpose: choosing a winner, and any figure that no run has recorded.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax import storage
from distill_jax.config.schema import SCHEMA
from distill_jax.errors import UsageError
from distill_jax.evaluation import paired
from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import records
from distill_jax.runs.figures import RECORD, read_record
from distill_jax.runs.records import RunRecord, section

#: Keys that may differ between the seeds of one setting.
SEED_KEYS = ("seed", "data.split_seed", "teacher.path", "teacher.store")

#: Locations that a resumed run may change, but that name what a run was made from.
INPUTS = ("teacher.path", "teacher.store", "student.path", "evaluation.test_prompts")

COSTS = (
    Column("parameters", "Parameters", "integer"),
    Column("model_bytes", "Model (bytes)", "integer"),
    Column("flops_a_step", "FLOPs a step, planned", "general", 4),
    Column("training_time_s", "Training (s)", "decimal", 1),
)


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one setting, which differ in nothing but the seed.

    Attributes:
      label: a name, unique in a comparison.
      runs: at least one.
      values: column -> the values of the runs that have it.
    """

    label: str
    runs: tuple[RunRecord, ...]
    values: Mapping[str, tuple[float, ...]]

    def mean(self, key: str) -> float | None:
        """The mean over the seeds; None where no run has the value."""
        found = self.values.get(key)
        return tables.mean_and_deviation(found)[0] if found else None

    def deviation(self, key: str) -> float | None:
        """The sample deviation over the seeds (n - 1); None for fewer than two."""
        found = self.values.get(key)
        return tables.mean_and_deviation(found)[1] if found else None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A group against the first one, on the same test examples.

    Attributes:
      label: of the group.
      metric: "accuracy" or "nll".
      interval: of the mean over the examples; None where it cannot be given.
      alone: how many examples the group alone has right, and the first one alone; None where that
        is not a count.
      p_value: of McNemar's exact test; None where there are several seeds.
      note: why there is no interval, or what it is of.
    """

    label: str
    metric: str
    interval: paired.Interval | None = None
    alone: tuple[int, int] | None = None
    p_value: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a page, a table and a file show of several runs.

    Attributes:
      kind: "images" or "text".
      groups: in the order of their first runs.
      unfinished: runs that are left out.
      metrics: the columns that at least one run has, costs last.
      config: key -> its value in each group, of the keys that differ.
      differences: of each group but the first.
      notes: what a reader must know of the figures.
    """

    kind: str
    groups: tuple[Group, ...]
    unfinished: tuple[RunRecord, ...]
    metrics: tuple[Column, ...]
    config: Mapping[str, tuple[str, ...]]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare(folders: Sequence[str | os.PathLike]) -> Comparison:
    """Reads runs and compares them.

    Raises:
      UsageError: a folder is no run, is damaged or is given twice; images and text are mixed; or no
        run has finished.
    """
    runs = [_open(folder) for folder in folders]
    seen: dict[str, RunRecord] = {}
    for run in runs:
        real = os.path.realpath(run.path) if not storage.is_remote(run.path) else str(run.path)
        if real in seen:
            raise UsageError(f"RUN={run.path}: given twice; expected different runs")
        seen[real] = run
    finished = [run for run in runs if run.state == "finished"]
    kinds = {run.kind: run for run in runs}
    if len(kinds) > 1:
        (a, first), (b, second) = list(kinds.items())[:2]
        raise UsageError(
            f"RUN={second.path}: a run on {b or 'unknown data'}, and {first.path} is one on "
            f"{a or 'unknown data'}; expected runs on one kind of data"
        )
    if not finished:
        raise UsageError(f"RUN={runs[0].path}: {runs[0].progress}; expected a finished run")
    groups = _groups(finished)
    columns = (*tables.EVALUATION, *COSTS)
    return Comparison(
        kind=finished[0].kind,
        groups=groups,
        unfinished=tuple(run for run in runs if run.state != "finished"),
        metrics=tuple(c for c in columns if any(group.values.get(c.key) for group in groups)),
        config=_config_differences(groups),
        differences=tuple(
            difference
            for group in groups[1:]
            for difference in _differences(groups[0], group, finished[0].kind)
        ),
        notes=tuple(_notes(groups)),
    )


def _open(folder: str | os.PathLike) -> RunRecord:
    run = records.read(storage.resolve_path(folder, "RUN"))
    if run is None:
        raise UsageError(f"RUN={os.fspath(folder)}: no run there; expected the folder of a run")
    if run.state == "damaged":
        raise UsageError(f"RUN={os.fspath(folder)}: damaged: {run.detail}; expected whole files")
    return run


def _groups(runs: Sequence[RunRecord]) -> tuple[Group, ...]:
    groups: list[list[RunRecord]] = []
    for run in runs:
        for group in groups:
            if _same_setting(group[0], run) and all(_seed(run) != _seed(other) for other in group):
                group.append(run)
                break
        else:  # of another setting, or the same seed again, which is no other seed
            groups.append([run])
    labels = _labels(groups)
    return tuple(
        Group(label, tuple(group), _values(group))
        for label, group in zip(labels, groups, strict=True)
    )


def _seed(run: RunRecord) -> str:
    return repr(run.config.get("seed"))


def _same_setting(a: RunRecord, b: RunRecord) -> bool:
    """Whether two runs differ in nothing but the seed, and in what follows it."""
    data = [section(run.manifest, "data").get("fingerprint") for run in (a, b)]
    flats = [_lasting(run.config) for run in (a, b)]
    if data[0] != data[1] or flats[0].keys() != flats[1].keys():
        return False
    for key, value in flats[0].items():
        other = flats[1][key]
        if value == other or key == "seed":
            continue
        if key == "teacher.path" and _teachers(a) == _teachers(b) != []:
            continue  # the same one under another name
        seedless = [_without_seed(value, a.config.get("seed"))]
        seedless.append(_without_seed(other, b.config.get("seed")))
        if key not in SEED_KEYS or seedless[0] != seedless[1]:
            return False
    return True


def _teachers(run: RunRecord) -> list[Any]:
    """The fingerprints of a run's teachers."""
    found = run.manifest.get("teachers")
    entries = found if isinstance(found, list) else []
    return [entry.get("fingerprint") for entry in entries if isinstance(entry, Mapping)]


def _without_seed(value: Any, seed: Any) -> Any:
    """A value with the run's seed taken out: "teachers/t_3" of seed 3 is "teachers/t_{seed}"."""
    if isinstance(value, list):
        return [_without_seed(entry, seed) for entry in value]
    if isinstance(value, str):
        folder, slash, name = value.rpartition("/")
        return folder + slash + re.sub(rf"(?<!\d){re.escape(str(seed))}(?!\d)", "{seed}", name)
    return "{seed}" if value == seed else value


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that belong to the computation, flat."""
    return {
        key: value
        for key, value in _flat(config).items()
        if key not in SCHEMA or SCHEMA[key].lasting or key in INPUTS
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _labels(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """What the names of a group's folders have in common, made unique."""
    labels: list[str] = []
    for group in groups:
        names = [run.path.name for run in group]
        common = os.path.commonprefix(names) if len(names) > 1 else names[0]
        label = re.sub(r"[-_. ]*(seed)?[-_. =]*$", "", common) if len(names) > 1 else common
        label = label or names[0]
        tries = [label, str(group[0].path), *(f"{label} ({n})" for n in range(2, len(groups) + 2))]
        labels.append(next(text for text in tries if text not in labels))
    return labels


def _values(runs: Sequence[RunRecord]) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    for run in runs:
        costs = {
            "parameters": run.result.get("parameters"),
            "model_bytes": _model_bytes(run),
            "flops_a_step": _planned_flops(run),
            "training_time_s": run.result.get("training_time_s"),
        }
        measured = {column.key: run.test.get(column.key) for column in tables.EVALUATION}
        for key, value in {**measured, **costs}.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(key, []).append(float(value))
    return {key: tuple(values) for key, values in found.items()}


def _model_bytes(run: RunRecord) -> int | None:
    """Bytes of the weights that the run saved; None where they are not on this machine."""
    folder = run.path / "model"
    if storage.is_remote(run.path) or not folder.is_dir():
        return None
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None


def _planned_flops(run: RunRecord) -> float | None:
    """FLOPs of a training step from the plan in the workdir; None without one."""
    if storage.is_remote(run.path):
        return None
    try:
        plan = json.loads((run.path / "plan.json").read_text())
    except (OSError, ValueError):
        return None
    found = section(plan if isinstance(plan, dict) else {}, "flops_a_step").get("model")
    return float(found) if isinstance(found, int | float) else None


def _config_differences(groups: Sequence[Group]) -> dict[str, tuple[str, ...]]:
    """Key -> its value in each group, of the keys whose values are not the same in all."""
    flats = [_lasting(group.runs[0].config) for group in groups]
    keys = sorted({key for flat in flats for key in flat})
    found = {}
    for key in keys:
        values = _values_in(groups, key)
        texts = tuple(
            json.dumps(value, ensure_ascii=False) if key in flat else tables.MISSING
            for value, flat in zip(values, flats, strict=True)
        )
        if len(set(texts)) > 1:
            found[key] = texts
    return found


def _values_in(groups: Sequence[Group], key: str) -> list[Any]:
    """The value of a key in each group; without the seed where it follows it in one of them."""
    values = [[_flat(run.config).get(key) for run in group.runs] for group in groups]
    firsts = [found[0] for found in values]
    if all(value == found[0] for found in values for value in found):
        return firsts
    seeds = [group.runs[0].config.get("seed") for group in groups]
    return [_without_seed(value, seed) for value, seed in zip(firsts, seeds, strict=True)]


def _differences(first: Group, other: Group, kind: str) -> list[Difference]:
    """The differences of a group from the first one, on the test examples that both recorded."""
    metrics = ("nll",) if kind == "text" else ("accuracy", "nll")
    found = [[_examples(run) for run in group.runs] for group in (first, other)]
    pairs = [[examples for examples in side if examples is not None] for side in found]
    each = [examples for side in pairs for examples in side]
    if len(each) < sum(map(len, found)):
        note = "no interval: not every run has stored its predictions on each test example"
        return [Difference(other.label, metric, note=note) for metric in metrics]
    if len({(examples["key"], len(examples["nll"])) for examples in each}) > 1:
        note = "no interval: the runs were tested on different examples"
        return [Difference(other.label, metric, note=note) for metric in metrics]
    return [_difference(metric, other, pairs[0], pairs[1]) for metric in metrics]


def _difference(
    metric: str, group: Group, first: list[dict[str, Any]], other: list[dict[str, Any]]
) -> Difference:
    name = "correct" if metric == "accuracy" else "nll"
    means = [
        np.asarray([e[name] for e in side], np.float64).mean(axis=0) for side in (other, first)
    ]
    counts = first[0]["count"]
    interval = paired.bootstrap_difference(*means, counts=counts)
    of = f"{len(means[0]):,} {'examples' if counts is None else 'rows of text'}"
    if counts is not None:
        of += f", {int(counts.sum()):,} tokens"
    if name == "correct" and len(first) == len(other) == 1:
        ours, theirs, p_value = paired.mcnemar(other[0][name], first[0][name])
        return Difference(group.label, metric, interval, (ours, theirs), p_value, of)
    seeds = "" if len(first) == len(other) == 1 else "; of each example, the mean over the seeds"
    return Difference(group.label, metric, interval, note=of + seeds)


def _examples(run: RunRecord) -> dict[str, Any] | None:
    """What a run recorded of each test example; None where it did not.

    Raises:
      UsageError: the record is not the one that the run wrote.
    """
    path = run.path / RECORD
    if not path.exists():
        return None
    if fault := records.sealed_fault(run, RECORD, path.read_bytes()):
        raise UsageError(f"RUN={run.path}: {RECORD} {fault}; expected the run's own")
    record = read_record(run.path)
    if not {"each_nll", "each_of"} <= record.keys():
        return None
    found = {"nll": record["each_nll"], "key": str(record["each_of"])}
    found["correct"] = record.get("each_correct")
    found["count"] = record.get("each_count")
    return found


def _notes(groups: Sequence[Group]) -> list[str]:
    sizes = {len(group.runs) for group in groups}
    notes = []
    if max(sizes) > 1:
        notes.append(
            "Runs whose configs differ in nothing but the seed, also where it is the number in the "
            "name of the teacher's folder or chooses the split, are seeds of one setting: mean ± "
            "sample standard deviation (n − 1), with n the number of runs."
        )
    devices = {str(run.result.get("device")) for group in groups for run in group.runs}
    if len(devices) > 1:
        notes.append(f"The times are of different devices: {', '.join(sorted(devices))}.")
    tested = {
        (section(run.manifest, "data").get("name"), run.test.get("count"))
        for group in groups
        for run in group.runs
    }
    if len(tested) > 1:
        notes.append(
            "The figures are of different test sets: "
            + ", ".join(sorted(f"{name} ({count:,})" for name, count in tested))
            + ". Do not compare them."
        )
    seeds = [run for group in groups for run in group.runs]
    notes += [f"{run.path.name}: {note}" for run in seeds for note in run.result.get("notes") or ()]
    return notes
