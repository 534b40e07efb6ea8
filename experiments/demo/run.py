"""Trains a teacher, a student without it and the same student with it; shows what it is worth.

    python -m experiments.demo.run --workdir=runs/demo
    python -m experiments.demo.run --workdir=runs/demo --seeds=10

Every seed has its own teacher and its own few images. A run that has finished is not repeated and
one that was stopped resumes, so the same command goes on after any interruption. Left out on
purpose: any choice of a model or a value; configs/digits.py holds what was chosen on validation
splits.
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
from distill_jax.errors import UsageError
from distill_jax.reports import tables
from distill_jax.runs import experiment, workdir
from distill_jax.training import checkpoints, loop
from distill_jax.training.logging import writers
from distill_jax.training.logging.progress import Progress
from experiments.demo import report

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "digits.py"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model")
    parser.add_argument("--epochs-scale", type=float, default=1.0, help="factor of all epochs")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1:
        raise UsageError(f"--seeds={arguments.seeds}: expected an integer >= 1")
    if not arguments.epochs_scale > 0:
        raise UsageError(f"--epochs-scale={arguments.epochs_scale}: expected a number > 0")
    return arguments


def config_of(role: str, seed: int, root: pathlib.Path, epochs_scale: float = 1.0) -> ConfigDict:
    """The config of one run: that of configs/digits.py with its seed and its teacher.

    The two students without a teacher name it too, so that their evaluation measures how often they
    agree with it; method.name="supervised" has no term in which it could enter their training.

    Args:
      role: a key of `report.LABELS`.
      seed: of the run, of its teacher, and of the split: another one, other images.
      root: the folder of all runs.
      epochs_scale: factor of the epochs.
    """
    overrides = {"seed": repr(seed), "data.split_seed": repr(seed), "logging.progress": "off"}
    if role != "teacher":
        overrides["teacher.path"] = repr(str(root / f"teacher_{seed}"))
    config = configs.load(f"{CONFIG}:{role}", overrides)
    with config.unlocked():
        config.training.epochs *= epochs_scale
    return config


@contextlib.contextmanager
def _followed(
    metrics: pathlib.Path, epochs: float, show: Callable[[float, dict[str, Any]], None]
) -> Iterator[None]:
    """While it lasts, a thread reads the log of a run and shows what is new: part done, figures."""
    over = threading.Event()

    def follow() -> None:
        shown = 0
        while not over.wait(0.25):
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
        over.set()
        thread.join()


def _brief(values: dict[str, Any]) -> dict[str, Any]:
    """What the tables need of a result.json: a file of many runs stays readable."""
    kept = ("seed", "parameters", "steps", "wall_time_s", "device", "parameters_sha256")
    wanted = ("count", "errors", "accuracy", "nll", "ece", "agreement")
    splits = {
        split: {name: figures[name] for name in wanted if name in figures}
        for split, figures in values["final"].items()
        if split in ("validation", "test")
    }
    return {**{name: values[name] for name in kept}, "final": splits}


def train(root: pathlib.Path, seeds: int, epochs_scale: float) -> list[dict[str, Any]]:
    """Trains what is not finished yet; the results of all runs, each with its role and folder."""
    plan = [(role, seed) for seed in range(seeds) for role in report.LABELS]
    results = []
    with Progress(len(plan), title="runs") as progress:
        for done, (role, seed) in enumerate(plan):
            config = config_of(role, seed, root, epochs_scale)
            folder = root / f"{role}_{seed}"
            reused = (folder / "result.json").exists()
            began = time.perf_counter()

            def show(part: float, values: dict[str, Any], done: int = done) -> None:
                # The last tenth is for the evaluation and the files that follow the training.
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
    """What to try next, as it can be typed in the folder where the demo was started."""
    beside = pathlib.Path(sys.executable).parent / "distill-jax"
    program = os.path.relpath(beside) if beside.exists() else "distill-jax"
    config = os.path.relpath(CONFIG)
    student, teacher = (shlex.quote(str(root / f"{role}_0")) for role in ("student", "teacher"))
    return [
        f"{program} eval --workdir={student}",
        f"{program} train --config={config} --workdir=runs/hot "
        f"--config.teacher.path={teacher} --config.method.temperature=8",
        f"{program} train --help-config",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit code, as the command line of distill-jax does."""
    try:
        arguments = _arguments(argv)
        root = arguments.workdir
        began = time.perf_counter()
        _announce(arguments.seeds)
        results = train(root, arguments.seeds, arguments.epochs_scale)
        workdir.write_json(root / "results.json", results)
        page = report.write(root, results)
    except UsageError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except loop.Preempted:
        print("demo: stopped by SIGTERM; the same command resumes", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (loop.Diverged, checkpoints.CheckpointError) as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    lines = tables.text(report.table(results))
    print(f"\n{lines}")
    for line in report.conclusions(results):
        print(textwrap.fill(line, width=lines.index("\n"), subsequent_indent="  "))
    print(f"\nReport: {page}   ({time.perf_counter() - began:.0f} s)\nNext:")
    for command in _commands(root):
        print(f"  {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
