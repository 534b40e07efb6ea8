"""Trains a teacher, a student without it and the same student with it, and compares them.

    python -m experiments.demo.run --workdir=runs/demo
    python -m experiments.demo.run --workdir=runs/demo --seeds=10

Every seed has its own teacher and its own few images. Finished runs are not repeated and
interrupted ones resume, so the same command continues after any interruption. Left out on purpose:
selecting a model or a value; configs/digits.py has what was selected on validation splits.
"""

import argparse
import contextlib
import os
import pathlib
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import parallel
from distill_jax.reports import tables
from distill_jax.runs import experiment, workdir
from distill_jax.training.logging import writers
from distill_jax.training.logging.progress import Progress
from experiments import study
from experiments.demo import report

PROGRAM = study.Program("demo")
CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "digits.py"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser, report_only=False)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="factor of all epochs")
    arguments = parser.parse_args(argv)
    study.require_workdir(arguments)
    study.require_at_least("seeds", arguments.seeds, 1)
    study.require_positive("epochs-scale", arguments.epochs_scale)
    return arguments


def config_of(role: str, seed: int, root: pathlib.Path, epochs_scale: float = 1.0) -> ConfigDict:
    """The config of one run: configs/digits.py with the run's seed and teacher.

    The students without a teacher name it too, so that their evaluation measures how often they
    agree with it. It does not enter their training: method.name="supervised" has no teacher term.

    Args:
      role: a key of `report.LABELS`.
      seed: of the run, of its teacher, and of the split, which decides the images.
      root: the folder of all runs.
      epochs_scale: factor of the epochs.
    """
    overrides = {"seed": repr(seed), "data.split_seed": repr(seed), "logging.progress": "off"}
    if role != "teacher":
        overrides["teacher.path"] = repr(str(root / f"teacher_{seed}"))
    config = configs.load(f"{CONFIG}:{role}", overrides)
    with config.unlocked():
        config.training.epochs *= epochs_scale
        config.training.cpu_kernels = "xla"  # the table does not depend on a compiler being there
    return config


@contextlib.contextmanager
def _followed(
    metrics: pathlib.Path, epochs: float, show: Callable[[float, dict[str, Any]], None]
) -> Iterator[None]:
    """Follows a run's log in a thread: `show(fraction done, metrics)` for every new record."""
    finished = threading.Event()

    def follow() -> None:
        shown = 0
        while not finished.wait(0.25):
            records = writers.read(metrics) if metrics.exists() else []
            last = next((r for r in reversed(records) if r["split"] == "train"), None)
            if last is not None and last["step"] > shown:
                shown = last["step"]
                show(last["epoch"] / epochs, last)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _brief(values: dict[str, Any]) -> dict[str, Any]:
    """The parts of a result.json that the tables need, so that a file of many runs is readable."""
    kept = ("seed", "parameters", "steps", "wall_time_s", "device", "parameters_sha256")
    wanted = ("count", "errors", "accuracy", "nll", "ece", "agreement")
    splits = {
        split: {name: figures[name] for name in wanted if name in figures}
        for split, figures in values["final"].items()
        if split in ("validation", "test")
    }
    return {**{name: values[name] for name in kept}, "final": splits}


def train(root: pathlib.Path, seeds: int, epochs_scale: float) -> list[dict[str, Any]]:
    """Trains the unfinished runs; returns the results of all, each with its role and folder."""
    plan = [(role, seed) for seed in range(seeds) for role in report.LABELS]
    results = []
    with Progress(len(plan), title="demo", counted="run") as progress:
        for done, (role, seed) in enumerate(plan):
            config = config_of(role, seed, root, epochs_scale)
            folder = root / f"{role}_{seed}"
            reused = (folder / "result.json").exists()
            began = time.perf_counter()

            def show(part: float, values: dict[str, Any], done: int = done) -> None:
                # The last tenth stands for the evaluation and the files after the training.
                progress.update(round(done + 0.9 * min(part, 1.0), 1), values)

            with _followed(folder / "metrics.jsonl", config.training.epochs, show):
                values = experiment.run(config, folder).values
            images = workdir.read_json(folder / "manifest.json")["data"]["train"]
            results.append({"role": role, "images": images, "folder": folder.name} | _brief(values))
            test = values["final"]["test"]
            took = "reused" if reused else f"{time.perf_counter() - began:4.1f} s"
            progress.note(
                f"seed {seed}  {report.LABELS[role]:{report.WIDEST}}"
                f"  accuracy {test['accuracy']:7.2%}  NLL {test['nll']:.4f}  {took}"
            )
            progress.update(done + 1, {})
    return results


def _announce(seeds: int) -> None:
    device, warning = parallel.describe_devices(parallel.make_mesh(data=1))
    line = f"DEVICE: {device} (JAX {jax.__version__}, {os.cpu_count()} CPU cores)"
    print(f"{'=' * len(line)}\n{line}\n{'=' * len(line)}")
    if warning:
        print(f"WARNING: {warning}")
    print(
        f"{len(report.LABELS)} models, {seeds} seed{'s'[: seeds > 1]} each, on scikit-learn's "
        "1,797 handwritten digits",
        flush=True,
    )


def _commands(root: pathlib.Path) -> list[str]:
    """Commands to try next, for the folder in which the demo was started."""
    installed = pathlib.Path(sys.executable).parent / "distill-jax"
    program = os.path.relpath(installed) if installed.exists() else "distill-jax"
    config = os.path.relpath(CONFIG)
    student, teacher = (shlex.quote(str(root / f"{role}_0")) for role in ("student", "teacher"))
    return [
        f"{program} eval --workdir={student}",
        f"{program} train --config={config} --workdir=runs/hot "
        f"--config.teacher.path={teacher} --config.method.temperature=8",
        f"{program} train --help-config",
    ]


def run_demo(argv: Sequence[str] | None) -> int:
    """Trains all models, writes the page and prints the conclusions."""
    arguments = _arguments(argv)
    root = arguments.workdir
    began = time.perf_counter()
    _announce(arguments.seeds)
    results = train(root, arguments.seeds, arguments.epochs_scale)
    workdir.write_json(root / "results.json", results)
    page = report.write(root, results)
    lines = tables.text(report.table(results))
    print(f"\n{lines}")
    for line in report.conclusions(results):
        print(textwrap.fill(line, width=lines.index("\n"), subsequent_indent="  "))
    print(f"\nReport: {page}   ({time.perf_counter() - began:.0f} s)\nNext:")
    for command in _commands(root):
        print(f"  {command}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code, see `study.Program.run`."""
    return PROGRAM.run(lambda: run_demo(argv))


if __name__ == "__main__":
    sys.exit(main())
