"""Images a second of whole training steps, ours and PyTorch's, measured alternately in one run.

    python -m experiments.throughput.run --pair=resnet56,resnet20 --seconds=20 --rounds=3
    python -m experiments.throughput.run --pair=resnet32x4,resnet8x4 --data=DIR --workers=8 \\
        --contenders=ours,torch_eager,torch_compile --out=runs/throughput
    python -m experiments.throughput.run --report-only

A step includes loading, augmentation, teacher, student, optimizer and metrics, for ours and for
PyTorch's. Each contender is a process of its own that compiles once; then the contenders are
measured alternately. PyTorch's need the extra "bench"; contenders whose packages are not installed
are left out and listed in the results. These are printed and written into --out, or with --publish
into results/ and README.md of this folder.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.reports import tables
from distill_jax.runs import workdir
from experiments import study
from experiments.throughput import contest, plan, records, report

TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = study.Program("throughput", huge_pages=False)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = PROGRAM.parser(__doc__)
    parser.add_argument("--pair", default="resnet56,resnet20", metavar="TEACHER,STUDENT")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender")
    parser.add_argument(
        "--contenders",
        default=",".join(plan.NEEDS),
        help="some of %(default)s, each with or without +huge",
    )
    parser.add_argument(
        "--data", default="random", help="random, or a folder with TFDS's CIFAR-100"
    )
    parser.add_argument("--workers", type=int, default=2, help="of PyTorch's loader; 0: none")
    parser.add_argument("--store-images", type=int, default=500, help="whose answers are stored")
    parser.add_argument("--out", type=pathlib.Path, help="folder; runs/throughput by default")
    parser.add_argument("--publish", action="store_true", help="results and README of this folder")
    parser.add_argument("--report-only", action="store_true", help="README from results/ again")
    arguments, rest = parser.parse_known_args(argv)
    if rest:
        raise UsageError(f"{rest[0]}: unknown argument; see --help")
    study.require_at_least("batch-size", arguments.batch_size, 1)
    study.require_at_least("rounds", arguments.rounds, 1)
    study.require_at_least("workers", arguments.workers, 0)
    study.require_at_least("store-images", arguments.store_images, plan.CLASSES)
    if not 0 < arguments.seconds < float("inf"):
        raise UsageError(f"--seconds={arguments.seconds:g}: expected a number > 0")
    if arguments.publish and arguments.out:
        raise UsageError(f"--out={arguments.out}: expected either --out or --publish")
    pair = tuple(arguments.pair.split(","))
    if len(pair) != 2:
        raise UsageError(f"--pair={arguments.pair}: expected TEACHER,STUDENT")
    arguments.pair = pair
    arguments.contenders = tuple(dict.fromkeys(arguments.contenders.split(",")))
    plan.check_names(pair, arguments.contenders)
    if arguments.data != "random" and not pathlib.Path(arguments.data).is_dir():
        raise UsageError(f"--data={arguments.data}: no such folder; expected random or a folder")
    return arguments


def _check_one_device(about: Mapping[str, Mapping[str, Any]]) -> None:
    """UsageError if some contenders compute on a GPU and some on the CPU."""
    devices = {"cpu" if one["platform"] == "cpu" else "gpu": name for name, one in about.items()}
    if len(devices) > 1:
        raise UsageError(
            f"{devices['cpu']} computes on the CPU, {devices['gpu']} on a GPU; expected one device:"
            " install the extra that serves it, such as pip install '.[cuda]', or choose "
            "--contenders"
        )


def command_of(name: str, task: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """The command of a contender's process; see contender.py."""
    module = "experiments.throughput.contender"
    return [sys.executable, "-m", module, name, str(task), str(folder)]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the contenders one by one and measures them alternately.

    Returns:
      "speeds", "about" and "left_out", each by contender; "busy", the share of the cores that
      other processes used before and after the measurements; see `records.record`.
    """
    about, left_out, ready = {}, {}, []
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # they share the device
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        task = folder / "task.json"
        given = plan.task_of(
            arguments.pair,
            folder,
            source=arguments.data,
            batch_size=arguments.batch_size,
            few=arguments.store_images,
            workers=arguments.workers,
        )
        task.write_text(json.dumps(given))
        for name in arguments.contenders:
            if lacking := plan.missing(name):
                left_out[name] = f"{lacking} is not installed"
                print(f"{name}: {left_out[name]}", flush=True)
                continue
            own = folder / name
            own.mkdir()
            one = contest.Contender(
                name,
                command_of(name, task, own),
                log=own / "log.txt",
                cwd=plan.ROOT,
                environment=environment | (TUNABLES if name.endswith(plan.HUGE) else {}),
            )
            stack.callback(one.end)
            try:
                about[name] = one.warm_up()
            except contest.Failed as error:
                left_out[name] = str(error)
                print(f"{name}: {error}", flush=True)
                continue
            ready.append(one)
            print(f"{name}: warmed up in {about[name]['warm_up_s']:.0f} s", flush=True)
        _check_one_device(about)
        busy, load = [contest.busy()], [os.getloadavg()[0]]
        speeds, failed = contest.alternate(
            ready,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            note=lambda line: print(line, flush=True),
        )
        busy.append(contest.busy())
        load.append(os.getloadavg()[0])
    if max(busy) > contest.QUIET:
        print(f"WARNING: {contest.not_quiet(max(busy))}", flush=True)
    left_out |= failed
    return {"speeds": speeds, "about": about, "left_out": left_out, "busy": busy, "load": load}


def run_study(arguments: argparse.Namespace, command: str, home: pathlib.Path) -> int:
    """Measures, prints and writes; returns 1 if an installed contender failed, else 0."""
    found = measure(arguments)
    if not found["speeds"]:
        raise UsageError(f"--contenders={','.join(arguments.contenders)}: none of them ran")
    record = records.record(arguments, found, command=command)
    target = home if arguments.publish else (arguments.out or pathlib.Path("runs/throughput"))
    (target / "results").mkdir(parents=True, exist_ok=True)
    path = target / "results" / f"{records.name_of(record)}.json"
    workdir.write_json(path, record)
    print(tables.text(report.table(record)), end="")
    print(path)
    print(report.write_readme(target))
    return int(any(not plan.missing(name) for name in found["left_out"]))


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`; also 1 for a failure."""
    argv = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        arguments = _arguments(argv)
        if arguments.report_only:
            print(report.write_readme(home))
            return 0
        return run_study(arguments, PROGRAM.command(argv), home)

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
