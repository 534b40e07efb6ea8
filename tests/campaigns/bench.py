"""What the campaigns break: small finished runs, stores and folders, and how they are made.

Every command runs in a process of its own (`run`), or in this one (`call`).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import small_texts
from golden.torch.make import fill
from small_runs import TEACHER, changed

from distill_jax import cli

IMAGES = changed(TEACHER, training__steps=12, checkpoint__every_steps=4)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch"
SIDE = json.loads((GOLDEN / "resnet8.json").read_text())["side"]
PLAN = ["--target=local"]


def counts(short: int, full: int) -> pytest.MarkDecorator:
    """The number of cases: `short` in each push, `full` at night, or DISTILL_JAX_CAMPAIGN."""
    chosen = int(os.environ.get("DISTILL_JAX_CAMPAIGN", full))
    short_case = pytest.param(short, marks=pytest.mark.slow)
    return pytest.mark.parametrize(
        "count", [short_case, pytest.param(chosen, marks=pytest.mark.nightly)]
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that writes to a folder.

    Attributes:
      verb: of the command line.
      flags: of it; "{out}" stands for the folder, "{bench}" for what is finished.
      outcome: the files that equal commands write equally.
    """

    verb: str
    flags: tuple[str, ...]
    outcome: tuple[str, ...]


JOBS = {
    "train": Job(
        "train",
        ("--config={bench}/images.py", "--workdir={out}"),
        ("metrics.jsonl", "model/weights.safetensors", "model/model.json"),
    ),
    "train text": Job(
        "train",
        ("--config={bench}/text.py", "--workdir={out}"),
        ("metrics.jsonl", "model/model.safetensors"),
    ),
    "store": Job(
        "store",
        (
            "--config={bench}/images.py",
            "--workdir={out}",
            "--config.method.name=soft_target",
            "--config.teacher.path={bench}/run",
            "--config.mesh.data=1",
        ),
        ("logits-00000.npy", "test-logits.npy"),
    ),
    "store text": Job("store", ("--config={bench}/text.py", "--workdir={out}"), ("ids-00000.npy",)),
    "generate": Job(
        "generate", ("--config={bench}/generate.py", "--workdir={out}"), ("responses.jsonl",)
    ),
    "import": Job(
        "import",
        (
            "{bench}/network.npz",
            "--model=resnet8",
            "--classes=5",
            "--mean=0.5,0.5,0.5",
            "--std=0.25,0.25,0.25",
            "--image={side},{side},3",
            "--workdir={out}",
        ),
        ("weights.safetensors", "model.json"),
    ),
    "export": Job(
        "export",
        ("--workdir={bench}/text_run", "--out={out}"),
        ("model.safetensors", "config.json"),
    ),
    "report": Job("report", ("--workdir={out}",), ("report.html",)),
    "plan": Job(
        "plan", ("--config={bench}/images.py", *PLAN, "--out={out}/plan.json"), ("plan.json",)
    ),
}


def command(job: Job, bench: pathlib.Path, out: pathlib.Path) -> list[str]:
    """The arguments of a job."""
    return [job.verb, *(flag.format(bench=bench, out=out, side=SIDE) for flag in job.flags)]


def start(arguments: list[str]) -> subprocess.Popen:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "distill_jax.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )


def call(arguments: list[str]) -> tuple[int, str, str]:
    """A command in this process: exit code, standard output and errors. A traceback raises."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main(arguments)
    return code, out.getvalue(), errors.getvalue()


def outcome(job: Job, out: pathlib.Path) -> dict[str, str]:
    """The hash of each file of a job's outcome."""
    found = {}
    for name in job.outcome:
        content = (out / name).read_bytes()
        if name == "plan.json":  # it tells how long compiling took
            content = json.dumps(sorted(json.loads(content))).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def litter(folder: pathlib.Path) -> list[str]:
    """Temporary and hidden files that no finished command leaves."""
    return [str(path) for path in folder.rglob(".*")]


def build(folder: pathlib.Path) -> pathlib.Path:
    """Makes what the jobs read: configs, a run on images, a run on text, and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.py").write_text(f"def get_config():\n    return {IMAGES!r}\n")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    teacher = small_texts.make_teacher(folder / "teacher")
    text = small_texts.config(teacher, records)
    text["training"]["steps"] = 3
    (folder / "text.py").write_text(f"def get_config():\n    return {text!r}\n")
    generate = {
        "teacher": {"path": str(teacher)},
        "prompts": str(records),
        "generate": {"max_new_tokens": 4, "batch_size": 8, "shard": 16},
    }
    (folder / "generate.py").write_text(f"def get_config():\n    return {generate!r}\n")
    known = json.loads((GOLDEN / "resnet8.json").read_text())
    state = {
        name: np.int64(7) if not shape else fill(name, tuple(shape))
        for name, shape in known["state"].items()
    }
    np.savez(folder / "network.npz", **state)
    for name, config in (("run", "images.py"), ("text_run", "text.py")):
        flags = ["train", f"--config={folder / config}", f"--workdir={folder / name}"]
        assert call(flags)[0] == 0
    return folder
