"""Compares `plan --target=local` with real runs on this machine's CPU: bytes and FLOPs.

    python -m experiments.scale.local --workdir=runs/local --tfds=DIR --decoder=DIR --text=FILE

Each case is planned in one process and run in another, on real data: three steps. The arrays that
a run holds are counted; the temporaries of a step are by how much the process grows in it. Finished
cases are not repeated. --tfds is a folder of prepared TFDS sets, --decoder a Hugging Face folder
such as SmolLM2-135M's, --text a file of text; teachers of images have random weights, which cost
the same. Linux.
--publish writes results/local.json and the table of docs/plan.md; otherwise a trial is printed.
"""

import argparse
import ctypes
import datetime
import gc
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.errors import UsageError
from distill_jax.processes import machine
from distill_jax.runs import workdir
from experiments import markers, study
from experiments.provenance import git_revision, versions

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "plan.md"
PROGRAM = study.Program("scale", "local")
STEPS = 3
MIB = 2**20

_CIFAR = {"data.name": "cifar100", "data.tfds_dir": "{tfds}"}
_TEXT = {
    "teacher.path": "{decoder}",
    "teacher.compute_dtype": "float32",
    "training.compute_dtype": "float32",
    "training.remat": "none",
    "data.path": "{text}",
    "data.length": "128",
    "training.batch_size": "4",
    "evaluation.batch_size": "4",
}
#: Name -> the config and its changes, in which {tfds}, {decoder} and {text} are the arguments.
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "digits, a small CNN alone, 64 images": ("digits.py:teacher", {}),
    "MNIST, 2x1200 alone, 100 images": (
        "mnist_hinton.py:teacher",
        {"data.name": "mnist", "data.tfds_dir": "{tfds}"},
    ),
    "CIFAR-100, resnet56 to resnet20, 64 images": (
        "cifar100.py:resnet56,resnet20,kd",
        _CIFAR | {"teacher.path": "resnet56"},
    ),
    "CIFAR-100, vgg13 to vgg8, 64 images": (
        "cifar100.py:vgg13,vgg8,kd",
        _CIFAR | {"teacher.path": "vgg13"},
    ),
    "text, a decoder to 4 of its layers, 4 x 128 tokens": (
        "lm_logits.py",
        _TEXT | {"student.layers": "(0, 10, 20, 29)"},
    ),
    "text, a decoder alone, bfloat16, 2 x 256 tokens": (
        "lm_logits.py",
        _TEXT
        | {
            "teacher.path": "()",
            "method.name": "supervised",
            "method.temperature": "4.0",
            "student.path": "{decoder}",
            "training.compute_dtype": "bfloat16",
            "data.length": "256",
            "training.batch_size": "2",
            "evaluation.batch_size": "2",
        },
    ),
}


def _config(name: str, given: Mapping[str, str]) -> Any:
    from distill_jax import config as configs

    file, changes = CASES[name]
    common = {"training.steps": str(STEPS), "training.compilation_cache": "off"}
    filled = {key: value.format(**given) for key, value in changes.items()}
    return configs.load(str(ROOT / "configs" / file), common | filled)


def _status(name: str) -> int:
    """A figure of this process in bytes: VmRSS, what it holds now, or VmHWM, its peak."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


def _settle() -> int:
    """Returns freed memory to the system; the bytes that this process holds then."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def plan_case(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The plan of a case, as `planning.report.to_json`."""
    from distill_jax.planning import plan, report, targets

    return report.to_json(plan.make_plan(_config(name, given), targets.open_target("local")))


def run_case(name: str, given: Mapping[str, str], folder: pathlib.Path) -> dict[str, Any]:
    """Opens a case as a run does, compiles its step and takes some; bytes at each stage."""
    import jax

    from distill_jax import tasks
    from distill_jax.training import step

    config = _config(name, given)
    _save_teacher(config, folder)
    jax.block_until_ready(jax.numpy.zeros(1))
    found = {"libraries": _settle()}
    parts = tasks.prepare(config)
    batches = parts.feed.at(0)
    taken = [step.put_batches([next(batches)], parts.mesh) for _ in range(STEPS)]
    found["opened"] = _settle()
    state = parts.initial
    arguments = (state, parts.frozen, parts.resident, taken[0])
    found["arguments"] = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments))
    found["live"] = sum(array.nbytes for array in jax.live_arrays())
    compiled = (
        step.compile_steps(parts.recipe, parts.mesh, parts.layout).lower(*arguments).compile()
    )
    found["compiled"], found["peak_compiling"] = _settle(), _status("VmHWM")
    del arguments
    grown = []
    for batch in taken:
        before = _settle()
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        state = jax.block_until_ready(compiled(state, parts.frozen, parts.resident, batch))
        grown.append(_status("VmHWM") - before)
    cost = compiled.cost_analysis() or {}
    peak = max(found["peak_compiling"], _status("VmHWM"))
    return {**found, "grown": grown, "peak": peak, "flops": cost.get("flops")}


def _save_teacher(config: Any, folder: pathlib.Path) -> None:
    """Saves a network of random weights in place of a teacher of images that is a name."""
    from distill_jax import models

    if len(config.teacher.path) != 1 or config.teacher.path[0] not in models.names():
        return
    name = config.teacher.path[0]
    module = models.create(name, input_shape=(32, 32, 3), num_classes=100, seed=1)
    _, params, stats = models.split(module)
    spec = models.Spec(name, {}, (32, 32, 3), 100, config.data.mean, config.data.std)
    models.save(folder / name, spec, params, stats)
    with config.unlocked():
        config.teacher.path = (str(folder / name),)


def _child(mode: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The result of `plan_case` or `run_case` in a process of its own."""
    command = [sys.executable, "-m", "experiments.scale.local", f"--child={mode}", f"--case={name}"]
    for flag in ("workdir", "tfds", "decoder", "text"):
        command.append(f"--{flag}={getattr(arguments, flag)}")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "DISTILL_JAX_HUGE_PAGES": "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise UsageError(f"--case={name}: its process failed; expected what it needs, see above")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, planned: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a case: bytes and FLOPs, planned and measured, and the rest of the process."""
    planned_bytes = planned["bytes_a_device"]
    within = ("gradients", "activations", "program", "total", "process", "limit")
    return {
        "case": name,
        "planned": {
            "arguments": sum(v for key, v in planned_bytes.items() if key in PARTS),
            "temporaries": planned_bytes["gradients"] + planned_bytes["activations"],
            "flops": planned["flops_a_step"]["program"],
            **{key: planned_bytes[key] for key in within},
        },
        "measured": {
            "arguments": run["arguments"],
            "temporaries": max(run["grown"][1:]),
            "flops": run["flops"],
        },
        "process": {
            "libraries": run["libraries"],
            "opened": run["opened"],
            "arrays": run["live"],
            "compiled": run["compiled"],
            "peak": run["peak"],
        },
    }


PARTS = ("teacher", "student", "optimizer", "averages", "adapters", "data", "batch", "counters")


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The table of docs/plan.md."""
    lines = [
        "| run | held: plan, run | in a step: plan, run | both | FLOPs: plan, XLA | libraries "
        "| host data | compiler | whole process: plan, peak |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for record in records:
        planned, run, process = record["planned"], record["measured"], record["process"]
        sums = [one["arguments"] + one["temporaries"] for one in (planned, run)]
        whole = planned["total"] + planned["process"]
        rest = process["opened"] - process["libraries"] - process["arrays"]
        cells = (
            record["case"],
            f"{_mib(planned['arguments'])}, {_mib(run['arguments'])}",
            f"{_mib(planned['temporaries'])}, {_mib(run['temporaries'])}",
            f"{_percent(*sums)}",
            f"{planned['flops'] / 1e9:.4g}, {(run['flops'] or 0) / 1e9:.4g}",
            _mib(process["libraries"]),
            _mib(rest),
            _mib(process["compiled"] - process["opened"]),
            f"{_mib(whole)}, {_mib(process['peak'])} ({_percent(whole, process['peak'])})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mib(value: float) -> str:
    return f"{value / MIB:,.0f}" if value >= 100 * MIB else f"{value / MIB:.1f}"


def _percent(planned: float, measured: float) -> str:
    return f"{100 * (planned / measured - 1):+.0f} %"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = PROGRAM.parser(__doc__)
    study.add_workdir(parser)
    parser.add_argument("--tfds", default="", help="folder of prepared TFDS sets")
    parser.add_argument("--decoder", default="", help="Hugging Face folder of a decoder")
    parser.add_argument("--text", default="", help="file of text")
    parser.add_argument("--case", help="one case alone", choices=tuple(CASES))
    parser.add_argument("--publish", action="store_true", help="into results/ and docs/plan.md")
    parser.add_argument("--child", choices=("plan", "run"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def work(argv: Sequence[str]) -> int:
    """Plans, runs, compares and writes."""
    arguments = _arguments(argv)
    results = HERE / "results" / "local.json"
    if arguments.report_only:
        records = workdir.read_json(results)["cases"]
        markers.fill(PAGE, lambda: table(records))
        return 0
    folder = study.require_workdir(arguments)
    given = {key: getattr(arguments, key) for key in ("tfds", "decoder", "text")}
    if arguments.child:
        one = plan_case if arguments.child == "plan" else run_case
        extra = () if arguments.child == "plan" else (folder,)
        print(json.dumps(one(arguments.case, given, *extra)))
        return 0
    records = []
    for name in [arguments.case] if arguments.case else CASES:
        done = folder / f"{re.sub('[^a-zA-Z0-9]+', '_', name)}.json"
        if not done.exists():
            found = {mode: _child(mode, name, arguments) for mode in ("plan", "run")}
            workdir.write_json(done, compare(name, found["plan"], found["run"]))
        records.append(workdir.read_json(done))
        print(table(records[-1:]), flush=True)
    if arguments.publish:
        content = {
            "command": PROGRAM.command(argv),
            "date": datetime.date.today().isoformat(),
            "cpu": machine.describe_cpu(),
            "versions": versions(),
            "git_revision": git_revision(),
            "cases": records,
        }
        workdir.write_json(results, content)
        markers.fill(PAGE, lambda: table(records))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return PROGRAM.run(lambda: work(argv))


if __name__ == "__main__":
    sys.exit(main())
