"""How the demo's values were selected: the metrics of every setting on validation images.

    python -m experiments.demo.tune --workdir=runs/demo_tuning

Five splits of the training images, other than the demo's, with 200 validation images each; the test
images are not used. Learning rate, weight decay and smoothing are the best values without a
teacher; the student with a teacher takes over the first two. The last part measures with how many
images a teacher still helps. Finished runs are not repeated; about 25 minutes on two CPU cores.
"""

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from distill_jax import config as configs
from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import experiment, workdir
from experiments import study
from experiments.demo import report, run

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "tuning.json"
SEEDS = range(100, 105)
STEPS = 825  # of every student, independent of its number of images

TITLES = {
    "alone": ("optimizer.learning_rate", "optimizer.weight_decay", "method.label_smoothing"),
    "taught": ("method.temperature", "method.hard_weight"),
    "images": ("data.fraction",),
}


def settings() -> list[tuple[str, str, dict[str, Any]]]:
    """(part, role, changes to configs/digits.py) of every setting of a student."""
    found = []
    for values in itertools.product((0.01, 0.03, 0.1), (0.1, 0.3, 1.0), (0.0, 0.02, 0.1)):
        found.append(("alone", "baseline", dict(zip(TITLES["alone"], values, strict=True))))
    for values in itertools.product((1.0, 2.0, 4.0, 8.0), (0.0, 0.1)):
        found.append(("taught", "student", dict(zip(TITLES["taught"], values, strict=True))))
    for fraction, role in itertools.product((0.05, 0.1, 0.25, 0.5, 1.0), ("baseline", "student")):
        found.append(("images", role, {"data.fraction": fraction}))
    return found


def measure(root: pathlib.Path, seeds: Sequence[int], steps: int = STEPS) -> list[dict[str, Any]]:
    """Trains the teachers and every setting; returns the validation metrics of each run."""
    for seed in seeds:
        experiment.run(run.config_of("teacher", seed, root), root / f"teacher_{seed}")
    results = []
    for part, role, changes in settings():
        name = "-".join([role, *(f"{key.split('.')[-1]}={v:g}" for key, v in changes.items())])
        for seed in seeds:
            keys = configs.flatten(run.config_of(role, seed, root))
            # Evaluated once, at the end: with fewer images an epoch has fewer steps.
            keys |= {"training.steps": steps, "evaluation.every_epochs": 0.0, **changes}
            folder = root / f"{name}_{seed}"
            found = experiment.run(configs.unflatten(keys), folder).values["final"]["validation"]
            figures = {figure: found[figure] for figure in ("accuracy", "nll", "ece")}
            results.append({"part": part, "role": role, **changes, "seed": seed, **figures})
        shown = [row for row in results if row["part"] == part][-len(seeds) :]
        print(tables.text(table(shown, part)).splitlines()[-1], flush=True)
    return results


def table(results: Sequence[dict[str, Any]], part: str) -> tables.Table:
    """The settings of one part of `TITLES`: validation metrics, mean ± deviation over splits."""
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
    program = study.Program("demo", "tune")
    parser = program.parser(__doc__)
    study.add_workdir(parser, report_only=False)

    def work() -> int:
        results = measure(study.require_workdir(parser.parse_args(argv)), SEEDS)
        RESULTS.parent.mkdir(exist_ok=True)
        workdir.write_json(RESULTS, results)
        for part in TITLES:
            print(f"\n{tables.markdown(table(results, part))}", end="")
        return 0

    return program.run(work)


if __name__ == "__main__":
    sys.exit(main())
