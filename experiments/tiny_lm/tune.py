"""How the learning rate was selected: students at several rates, on validation documents.

    python -m experiments.tiny_lm.tune --workdir=runs/tiny_lm

The runs have a seed of their own, and the test documents are not used. Every arm has the rate that
is best for the text alone; two more arms show whether that rate suits them too. Finished runs are
not repeated.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import experiment, workdir
from experiments import study
from experiments.tiny_lm import corpus, plan, run

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "tuning.json"
RATES = {
    "hard": (1e-3, 2e-3, 4e-3, 8e-3),
    "reverse_kl": (2e-3, 4e-3, 8e-3),
    "jsd": (2e-3, 4e-3, 8e-3),
}
SEED = 100


def measure(opened: run.Study) -> list[dict[str, Any]]:
    """Trains the teacher and every setting; returns the validation metrics of each run."""
    teacher = run.train_teacher(opened)
    results = []
    for name, rate in [(name, rate) for name, rates in RATES.items() for rate in rates]:
        overrides = {
            "optimizer.learning_rate": str(rate),
            "data.test_path": str(opened.text.folder / corpus.VALID),
            "evaluation.test_prompts": "",
            "evaluation.track_test": "false",
        }
        config = plan.student_config(
            plan.ARM[name], SEED, opened.text, teacher, opened.steps, overrides
        )
        folder = opened.root / "tuning" / f"{name}-{rate:g}"
        found = experiment.run(config, folder).values["final"]["test"]
        figures = {figure: found[figure] for figure in ("count", "nll", "kl", "agreement")}
        results.append({"arm": name, "learning_rate": rate, **figures})
        print(f"{name}, rate {rate:g}: NLL {found['nll']:.4f}, KL {found['kl']:.4f}", flush=True)
    return results


def table(results: Sequence[Mapping[str, Any]]) -> tables.Table:
    """The validation metrics of every setting."""
    return tables.listing(
        [{**row, "title": plan.ARM[row["arm"]].title} for row in results],
        (
            Column("title", "Trained by"),
            Column("learning_rate", "Learning rate", "general", 3),
            Column("nll", "NLL", "decimal", 4),
            Column("kl", "KL from the teacher", "decimal", 4),
            Column("agreement", "Agreement (%)", "percent"),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures every setting and writes results/tuning.json; returns the exit code."""
    program = study.Program("tiny_lm", "tune")
    parser = program.parser(__doc__)
    study.add_workdir(parser, report_only=False)
    run.add_arguments(parser)

    def work() -> int:
        results = measure(run.open_study(parser.parse_args(argv)))
        RESULTS.parent.mkdir(exist_ok=True)
        workdir.write_json(RESULTS, results)
        print(tables.markdown(table(results)), end="")
        return 0

    return program.run(work)


if __name__ == "__main__":
    sys.exit(main())
