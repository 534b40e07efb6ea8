"""How the demo's values were chosen: the figures of every setting on validation images.

    python -m experiments.demo.tune --workdir=runs/demo_tuning

Five splits of the training images, other ones than the demo's; 200 images of each choose, the test
images are not looked at. Learning rate, weight decay and smoothing are those that are best without
a teacher; the student with one takes over the first two. The last part asks with how many images a
teacher still helps. What has finished is not trained again; about 25 minutes on two CPU cores.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import experiment, workdir
from experiments.demo import report, run

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "tuning.json"
SEEDS = range(100, 105)
STEPS = 825  # of every student, whatever its images

TITLES = {
    "alone": ("optimizer.learning_rate", "optimizer.weight_decay", "method.label_smoothing"),
    "taught": ("method.temperature", "method.hard_weight"),
    "images": ("data.fraction",),
}


def settings() -> list[tuple[str, str, dict[str, Any]]]:
    """(part, role, keys that differ from configs/digits.py) of every setting of a student."""
    found = []
    for values in itertools.product((0.01, 0.03, 0.1), (0.1, 0.3, 1.0), (0.0, 0.02, 0.1)):
        found.append(("alone", "baseline", dict(zip(TITLES["alone"], values, strict=True))))
    for values in itertools.product((1.0, 2.0, 4.0, 8.0), (0.0, 0.1)):
        found.append(("taught", "student", dict(zip(TITLES["taught"], values, strict=True))))
    for fraction, role in itertools.product((0.05, 0.1, 0.25, 0.5, 1.0), ("baseline", "student")):
        found.append(("images", role, {"data.fraction": fraction}))
    return found


def measure(root: pathlib.Path, seeds: Sequence[int], steps: int = STEPS) -> list[dict[str, Any]]:
    """Trains the teachers and every setting; one entry a run, with its validation figures."""
    for seed in seeds:
        experiment.run(run.config_of("teacher", seed, root), root / f"teacher_{seed}")
    results = []
    for part, role, changes in settings():
        name = "-".join([role, *(f"{key.split('.')[-1]}={v:g}" for key, v in changes.items())])
        for seed in seeds:
            keys = configs.flatten(run.config_of(role, seed, root))
            # Evaluated once, at the end: an epoch is another number of steps with other images.
            keys |= {"training.steps": steps, "evaluation.every_epochs": 0.0, **changes}
            folder = root / f"{name}_{seed}"
            found = experiment.run(configs.unflatten(keys), folder).values["final"]["validation"]
            figures = {figure: found[figure] for figure in ("accuracy", "nll", "ece")}
            results.append({"part": part, "role": role, **changes, "seed": seed, **figures})
        shown = [row for row in results if row["part"] == part][-len(seeds) :]
        print(tables.text(table(shown, part)).splitlines()[-1], flush=True)
    return results


def table(results: Sequence[dict[str, Any]], part: str) -> tables.Table:
    """The settings of one part of `TITLES`: validation figures, mean ± deviation over splits."""
    rows = [{**row, "model": report.LABELS[row["role"]]} for row in results if row["part"] == part]
    keys = [Column(key, key, "general", 3) for key in TITLES[part]]
    return tables.over_seeds(
        rows,
        by=[Column("model", "Model"), *keys] if part == "images" else keys,
        columns=[
            Column("accuracy", "Accuracy (%)", "percent"),
            Column("nll", "NLL", "decimal", 4),
            Column("ece", "ECE (%)", "percent"),
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures every setting and writes results/tuning.json; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    try:
        results = measure(parser.parse_args(argv).workdir, SEEDS)
    except UsageError as error:
        print(f"tune: error: {error}", file=sys.stderr)
        return 2
    RESULTS.parent.mkdir(exist_ok=True)
    workdir.write_json(RESULTS, results)
    for part in TITLES:
        print(f"\n{tables.markdown(table(results, part))}", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
