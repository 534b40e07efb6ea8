"""The whole story of language distillation on two cores: a teacher, seven ways to learn from it.

    python -m experiments.tiny_lm.run --workdir=runs/tiny_lm
    python -m experiments.tiny_lm.run --workdir=runs/smoke --steps=8 --teacher-steps=8 --seeds=1 \\
        --documents=200
    python -m experiments.tiny_lm.run --report-only

A run that has finished is not repeated, one that was stopped resumes: the same command goes on
after any interruption. Only the whole study writes into this folder (results/ and the tables of
README.md); anything less is labelled as a trial and written into WORKDIR/report.
"""

import argparse
import dataclasses
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from distill_jax import config as configs
from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.runs import experiment, workdir
from distill_jax.runs import generation as generate
from distill_jax.training import loop
from experiments.tiny_lm import corpus, measure, plan, report

HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Study:
    """What a command line asks for, with its text prepared.

    Attributes:
      root: the folder of all runs.
      text: prepared.
      steps: of a student.
      teacher_steps: of the teacher.
      seeds: of each arm.
      label: what a reader of a trial is warned of; empty for the whole study.
    """

    root: pathlib.Path
    text: corpus.Corpus
    steps: int
    teacher_steps: int
    seeds: int
    label: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that this program and tune.py share."""
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs")
    parser.add_argument("--data", default="", help="folder of GSM8K and stories260K")
    parser.add_argument("--steps", type=int, default=plan.STEPS, help="of a student")
    parser.add_argument("--teacher-steps", type=int, default=plan.TEACHER_STEPS)
    parser.add_argument("--seeds", type=int, default=plan.SEEDS, help="students of each kind")
    parser.add_argument("--documents", type=int, help="of each file, the first; for a trial")


def open_study(arguments: argparse.Namespace) -> Study:
    """Checks the arguments, prepares the text, and has programs kept for the next seed.

    Raises:
      UsageError: an argument that is refused, or no data; before anything is written.
    """
    if arguments.workdir is None:
        raise UsageError("--workdir: missing; expected a folder for the runs")
    least = {"steps": plan.EVALUATIONS, "teacher_steps": 1, "seeds": 1, "documents": 100}
    for name, low in least.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise UsageError(f"--{name.replace('_', '-')}={value}: expected an integer >= {low}")
    root = arguments.workdir
    source = corpus.data_folder(arguments.data)
    text = corpus.prepare(source, root / "text", arguments.documents)
    if not jax.config.jax_compilation_cache_dir:  # the seeds of an arm share their programs
        jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    own = {
        "steps": (arguments.steps, plan.STEPS),
        "teacher steps": (arguments.teacher_steps, plan.TEACHER_STEPS),
        "seeds": (arguments.seeds, plan.SEEDS),
        "documents a file": (arguments.documents, None),
    }
    changed = [f"{given} {name}" for name, (given, whole) in own.items() if given != whole]
    label = f"A trial, not a result: {', '.join(changed)}." if changed else ""
    return Study(root, text, arguments.steps, arguments.teacher_steps, arguments.seeds, label)


def train_teacher(study: Study) -> pathlib.Path:
    """Has the teacher trained; its workdir."""
    folder = study.root / "teacher"
    values = experiment.run(plan.teacher_config(study.text, study.teacher_steps), folder).values
    nll = values["final"]["test"]["nll"]
    print(f"teacher: NLL {nll:.4f}, {values['wall_time_s']:.0f} s", flush=True)
    return folder


def write_responses(study: Study, teacher: pathlib.Path) -> dict[str, Any]:
    """Has the teacher answer the students' questions; how many answers, and the seconds.

    What a first call took is kept beside the answers, since a second one finds them written.

    Raises:
      UsageError: the teacher has not learned to end an answer.
    """
    out, spent = study.root / "responses", study.root / "responses.json"
    asked = configs.read(
        str(plan.CONFIGS / "lm_generate.py"),
        {
            "teacher.path": str(teacher),
            "prompts": str(study.text.folder / corpus.STUDENT),
            "generate.tokenizer": str(study.text.tokenizer),
            "generate.top_p": "1.0",  # its own distribution, which a student is to learn
            "generate.samples": str(plan.SAMPLES),
            "generate.max_new_tokens": str(corpus.HALF),
            "generate.batch_size": "64",
            "generate.compute_dtype": "float32",
        },
    )
    path, settings = generate.settings_of(asked)
    began = time.perf_counter()
    # On one device, as the runs are.
    mesh = parallel.make_mesh(data=1, devices=jax.devices()[:1])
    summary = generate.write(settings, path, out, mesh=mesh)
    if not spent.exists():
        kept = corpus.finished(out / plan.RESPONSES, study.text.folder / plan.RESPONSES)
        if not kept["kept"]:
            raise UsageError(
                f"--teacher-steps={study.teacher_steps}: the teacher ended none of its "
                f"{kept['written']} answers; expected more"
            )
        seconds = round(time.perf_counter() - began, 1)
        found = {**kept, "tokens": summary["tokens"], "seconds": seconds}
        workdir.write_json(spent, found)
    return workdir.read_json(spent)


def train(study: Study) -> tuple[list[measure.Run], dict[str, Any]]:
    """Trains what is not finished yet, first seeds first; the runs, and the teacher's writing."""
    teacher = train_teacher(study)
    written = write_responses(study, teacher)
    text = dataclasses.replace(
        study.text, documents={**study.text.documents, plan.RESPONSES: written["kept"]}
    )
    runs = [measure.Run(arm, seed) for seed in range(study.seeds) for arm in plan.ARMS]
    for index, one in enumerate(runs, start=1):
        config = plan.student_config(one.arm, one.seed, text, teacher, study.steps)
        values = experiment.run(config, study.root / one.name).values
        test = values["final"]["test"]
        print(
            f"[{index}/{len(runs)}] {one.name}: NLL {test['nll']:.4f}, KL {test['kl']:.4f}, "
            f"{values['wall_time_s']:.0f} s",
            flush=True,
        )
        jax.clear_caches()  # what the next seed shares lies on the disk
    return runs, written


def study(arguments: argparse.Namespace, command: str, home: pathlib.Path) -> pathlib.Path:
    """Trains, measures and reports.

    Args:
      arguments: of the command line.
      command: as the report shall state it.
      home: the study's folder, which gets the results of the whole study.

    Returns:
      The README that was written.
    """
    opened = open_study(arguments)
    runs, written = train(opened)
    summary = measure.summary(
        runs, opened.root, written, opened.text, command=command, label=opened.label
    )
    target = opened.root / "report" if opened.label else home
    results = target / "results"
    results.mkdir(parents=True, exist_ok=True)
    workdir.write_json(results / report.SUMMARY, summary)
    report.draw(summary, results)
    return report.write_readme(summary, target / "README.md")


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code: 0 done or stopped by SIGTERM, 2 a mistake of use."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tiny_lm.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--report-only", action="store_true", help="README from results/ again")
    try:
        arguments = parser.parse_args(argv)
        if arguments.report_only:
            summary = workdir.read_json(home / "results" / report.SUMMARY)
            report.draw(summary, home / "results")
            print(report.write_readme(summary, home / "README.md"))
        else:
            # A reader elsewhere has no use for where things lie on this machine.
            shown = [re.sub(r"(^|=)/.*/", r"\1", argument) for argument in argv]
            command = " ".join(["python -m experiments.tiny_lm.run", *shown])
            print(study(arguments, command, home))
    except UsageError as error:
        print(f"tiny_lm: error: {error}", file=sys.stderr)
        return 2
    except loop.Preempted:
        print("tiny_lm: stopped by SIGTERM; the same command resumes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
