"""Language distillation on two CPU cores: a teacher, and seven ways to learn from it.

    python -m experiments.tiny_lm.run --workdir=runs/tiny_lm
    python -m experiments.tiny_lm.run --workdir=runs/smoke --steps=8 --teacher-steps=8 --seeds=1 \\
        --documents=200
    python -m experiments.tiny_lm.run --report-only

Finished runs are not repeated and interrupted ones resume, so the same command continues after any
interruption. Only the whole study writes into this folder (results/ and the tables of README.md);
anything less is labelled as a trial and written into WORKDIR/report.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from distill_jax import config as configs
from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.runs import experiment, generation, generation_settings, workdir
from experiments import study
from experiments.tiny_lm import corpus, measure, plan, report

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("tiny_lm")


@dataclasses.dataclass(frozen=True)
class Study:
    """The study of a command line, with its text prepared.

    Attributes:
      root: the folder of all runs.
      text: the prepared text.
      steps: training steps of a student.
      teacher_steps: training steps of the teacher.
      seeds: the number of seeds of each arm.
      label: the warning to readers of a trial; empty for the whole study.
    """

    root: pathlib.Path
    text: corpus.Corpus
    steps: int
    teacher_steps: int
    seeds: int
    label: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that this program and tune.py share, without --workdir."""
    parser.add_argument("--data", default="", help="folder of GSM8K and stories260K")
    parser.add_argument("--steps", type=int, default=plan.STEPS, help="steps of a student")
    parser.add_argument("--teacher-steps", type=int, default=plan.TEACHER_STEPS)
    parser.add_argument("--seeds", type=int, default=plan.SEEDS, help="students of each kind")
    parser.add_argument("--documents", type=int, help="the first documents of each file, a trial")


def open_study(arguments: argparse.Namespace) -> Study:
    """Checks the arguments and prepares the text.

    Raises:
      UsageError: an invalid argument, or no data; before anything is written.
    """
    root = study.require_workdir(arguments)
    study.require_at_least("steps", arguments.steps, plan.EVALUATIONS)
    study.require_at_least("teacher-steps", arguments.teacher_steps, 1)
    study.require_at_least("seeds", arguments.seeds, 1)
    study.require_at_least("documents", arguments.documents, 100)
    source = corpus.data_folder(arguments.data)
    text = corpus.prepare(source, root / "text", arguments.documents)
    whole = {
        "steps": (arguments.steps, plan.STEPS),
        "teacher steps": (arguments.teacher_steps, plan.TEACHER_STEPS),
        "seeds": (arguments.seeds, plan.SEEDS),
        "documents a file": (arguments.documents, None),
    }
    changed = [f"{given} {name}" for name, (given, full) in whole.items() if given != full]
    return Study(
        root=root,
        text=text,
        steps=arguments.steps,
        teacher_steps=arguments.teacher_steps,
        seeds=arguments.seeds,
        label=study.trial_label(changed),
    )


def train_teacher(opened: Study) -> pathlib.Path:
    """Trains the teacher; returns its workdir."""
    folder = opened.root / "teacher"
    values = experiment.run(plan.teacher_config(opened.text, opened.teacher_steps), folder).values
    nll = values["final"]["test"]["nll"]
    print(f"teacher: NLL {nll:.4f}, {values['wall_time_s']:.0f} s", flush=True)
    return folder


def write_responses(opened: Study, teacher: pathlib.Path) -> dict[str, Any]:
    """The teacher generates answers to the students' questions; returns their counts and seconds.

    The counts and seconds of the first call are kept in a file, because a later call finds the
    answers finished.

    Raises:
      UsageError: the teacher ended none of its answers.
    """
    out, record = opened.root / "responses", opened.root / "responses.json"
    config = configs.read(
        str(plan.CONFIGS / "lm_generate.py"),
        {
            "teacher.path": str(teacher),
            "prompts": str(opened.text.folder / corpus.STUDENT),
            "generate.tokenizer": str(opened.text.tokenizer),
            "generate.top_p": "1.0",  # the teacher's own distribution, which a student is to learn
            "generate.samples": str(plan.SAMPLES),
            "generate.max_new_tokens": str(corpus.HALF),
            "generate.batch_size": "64",
            "generate.compute_dtype": "float32",
        },
    )
    path, settings = generation_settings.parse(config)
    began = time.perf_counter()
    # On one device, as the runs are.
    mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
    summary = generation.write(settings, path, out, mesh=mesh)
    if not record.exists():
        kept = corpus.finished(out / plan.RESPONSES, opened.text.folder / plan.RESPONSES)
        if not kept["kept"]:
            raise UsageError(
                f"--teacher-steps={opened.teacher_steps}: the teacher ended none of its "
                f"{kept['written']} answers; expected more"
            )
        seconds = round(time.perf_counter() - began, 1)
        found = {**kept, "tokens": summary["tokens"], "seconds": seconds}
        workdir.write_json(record, found)
    return workdir.read_json(record)


def train(opened: Study) -> tuple[list[measure.Run], dict[str, Any]]:
    """Trains the unfinished runs, by seed; returns all runs, and the record of the answers."""
    teacher = train_teacher(opened)
    written = write_responses(opened, teacher)
    text = dataclasses.replace(
        opened.text, documents={**opened.text.documents, plan.RESPONSES: written["kept"]}
    )
    runs = [measure.Run(arm, seed) for seed in range(opened.seeds) for arm in plan.ARMS]
    for index, one in enumerate(runs, start=1):
        config = plan.student_config(one.arm, one.seed, text, teacher, opened.steps)
        values = experiment.run(config, opened.root / one.name).values
        test = values["final"]["test"]
        print(
            f"[{index}/{len(runs)}] {one.name}: NLL {test['nll']:.4f}, KL {test['kl']:.4f}, "
            f"{values['wall_time_s']:.0f} s",
            flush=True,
        )
        jax.clear_caches()  # the programs that the next seed shares are on disk
    return runs, written


def run_study(arguments: argparse.Namespace, command: str, home: pathlib.Path) -> pathlib.Path:
    """Trains, measures and reports.

    Args:
      arguments: the command line's.
      command: the command line for the record.
      home: the study's folder, which gets the results of the whole study.

    Returns:
      The README that was written.
    """
    opened = open_study(arguments)
    runs, written = train(opened)
    summary = measure.summary(
        runs, opened.root, written, opened.text, command=command, label=opened.label
    )
    target = study.results_folder(home, opened.root, trial=bool(opened.label))
    workdir.write_json(target / "results" / report.SUMMARY, summary)
    report.draw(summary, target / "results")
    return report.write_readme(summary, target / "README.md")


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser)
    add_arguments(parser)

    def work() -> int:
        arguments = parser.parse_args(argv)
        if arguments.report_only:
            summary = workdir.read_json(home / "results" / report.SUMMARY)
            report.draw(summary, home / "results")
            print(report.write_readme(summary, home / "README.md"))
        else:
            print(run_study(arguments, PROGRAM.command(argv), home))
        return 0

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
