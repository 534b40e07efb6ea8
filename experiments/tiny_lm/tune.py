"""How the learning rate was chosen: students at several rates, on validation documents.

    python -m experiments.tiny_lm.tune --workdir=runs/tiny_lm

Beside the study's own runs, with a seed of its own; the test documents are not looked at. The rate
that is best for the text alone is taken for every arm; two others show whether it suits them too.
What has finished is not trained again.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import experiment, workdir
from experiments.tiny_lm import corpus, plan, run

RESULTS = pathlib.Path(__file__).resolve().parent / "results" / "tuning.json"
RATES = {
    "hard": (1e-3, 2e-3, 4e-3, 8e-3),
    "reverse_kl": (2e-3, 4e-3, 8e-3),
    "jsd": (2e-3, 4e-3, 8e-3),
}
SEED = 100


def measure(study: run.Study) -> list[dict[str, Any]]:
    """Trains the teacher and every setting; one entry a run, with its validation figures."""
    teacher = run.train_teacher(study)
    results = []
    for name, rate in [(name, rate) for name, rates in RATES.items() for rate in rates]:
        overrides = {
            "optimizer.learning_rate": str(rate),
            "data.test_path": str(study.text.folder / corpus.VALID),
            "evaluation.test_prompts": "",
            "evaluation.track_test": "false",
        }
        config = plan.student_config(
            plan.ARM[name], SEED, study.text, teacher, study.steps, overrides
        )
        folder = study.root / "tuning" / f"{name}-{rate:g}"
        found = experiment.run(config, folder).values["final"]["test"]
        figures = {figure: found[figure] for figure in ("count", "nll", "kl", "agreement")}
        results.append({"arm": name, "learning_rate": rate, **figures})
        print(f"{name}, rate {rate:g}: NLL {found['nll']:.4f}, KL {found['kl']:.4f}", flush=True)
    return results


def table(results: Sequence[Mapping[str, Any]]) -> tables.Table:
    """Validation figures of every setting."""
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
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tiny_lm.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_arguments(parser)
    try:
        results = measure(run.open_study(parser.parse_args(argv)))
    except UsageError as error:
        print(f"tune: error: {error}", file=sys.stderr)
        return 2
    RESULTS.parent.mkdir(exist_ok=True)
    workdir.write_json(RESULTS, results)
    print(tables.markdown(table(results)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
