"""Tokens a second of whole training steps of a language model, ours and PyTorch's, alternately.

    python -m experiments.throughput.language --model=FOLDER --text=FILE
    python -m experiments.throughput.language --model=FOLDER --text=FILE --layers=0,10,20,29 \\
        --contenders=ours_bf16,torch_bf16,torch_bf16_huge --rounds=4 --out=runs/language

The teacher is a Hugging Face folder, the student some of its layers; forward KL and cross-entropy,
AdamW, batches of 4 x 128 tokens of the text. PyTorch's contenders take transformers' model with
whole logits, as its users write it. "_huge" is glibc's malloc with huge pages, by
GLIBC_TUNABLES=glibc.malloc.hugetlb=1. Each contender is a process of its own; they are measured in
turn, so that what slows the machine slows all.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from distill_jax.errors import UsageError, unknown
from distill_jax.reports import tables
from distill_jax.reports.tables import Column
from distill_jax.runs import workdir
from experiments import study
from experiments.provenance import git_revision, versions
from experiments.throughput import contest

PROGRAM = study.Program("throughput", "language")
HUGE, TUNABLE = "_huge", "glibc.malloc.hugetlb=1"
OURS = ("ours_f32", "ours_bf16", "ours_stored_bf16")
PEERS = ("torch_f32", "torch_bf16")
NAMES = tuple(name + end for name in (*OURS, *PEERS) for end in ("", HUGE))
BASE = "torch_bf16"
LENGTH, BATCHES, ANSWERS = 128, 20, "top_k:64"


def config_of(name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config of a contender of ours, for the task of `main`."""
    dtype = "bfloat16" if "bf16" in name else "float32"
    return {
        "data.name": "text",
        "data.path": task["text"],
        "data.length": LENGTH,
        "data.tokenizer": task["model"],
        "data.validation": 0.0,
        "data.test_path": task["text"],
        "teacher.path": (task["model"],),
        "teacher.compute_dtype": dtype,
        "student.name": "decoder",
        "student.layers": tuple(task["layers"]),
        "method.name": "soft_target",
        "method.temperature": 1.0,
        "method.hard_weight": task["hard_weight"],
        "method.soft_weight": 1.0 - task["hard_weight"],
        "optimizer.name": "adamw",
        "optimizer.learning_rate": task["learning_rate"],
        "optimizer.weight_decay": task["weight_decay"],
        "optimizer.clip_norm": task["clip_norm"],
        "training.batch_size": task["batch_size"],
        "training.steps": 10**9,
        "training.compute_dtype": dtype,
        "evaluation.every_epochs": 0.0,
        "checkpoint.every_epochs": 0.0,
        "logging.progress": "off",
        "mesh.data": 1,
    }


def prepare(name: str, task: Mapping[str, Any], folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """The training function of a contender of ours, and its description."""
    import jax

    from distill_jax import config as configs
    from distill_jax import kernels, tasks
    from distill_jax.tasks.language.parts import prepare as parts_of
    from distill_jax.training import step

    flat = config_of(name, task)
    if "stored" in name:
        made = configs.resolve(configs.unflatten(flat))
        tasks.precompute(made, folder / "store", answers=ANSWERS)
        # The layers are read from the folder: no teacher is in memory.
        flat |= {"teacher.path": (), "teacher.store": str(folder / "store")}
        flat["student.path"] = task["model"]
    parts = parts_of(configs.resolve(configs.unflatten(flat)))
    compiled = step.compile_steps(parts.recipe, parts.mesh)
    now = parts.initial  # the first step donates it, as in a run
    batches = parts.feed.at(0)

    def train_for(seconds: float) -> int:
        nonlocal now
        done, deadline = 0, time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            placed = step.put_batches([next(batches)], parts.mesh)
            now = jax.block_until_ready(compiled(now, parts.frozen, parts.resident, placed))
            done += task["batch_size"] * LENGTH
        return done

    return train_for, {"platform": "cpu", "kernels": str(kernels.status())}


def contend(name: str, task_path: str, folder: str) -> None:
    """The process of one contender; serves until its input ends."""
    task = json.loads(pathlib.Path(task_path).read_text())
    kind = name.removesuffix(HUGE)
    if kind in OURS:
        contest.serve(lambda: prepare(kind, task, pathlib.Path(folder)))
        return
    from experiments.throughput import language_peers  # needs PyTorch

    contest.serve(lambda: language_peers.prepare(kind, task))


def write_batches(task: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes the first batches of our contenders for PyTorch's: "tokens", "targets" [N, B, T]."""
    from distill_jax import config as configs
    from distill_jax import data
    from distill_jax.data import text
    from distill_jax.tasks.language.data import load_splits, open_tokenizer

    config = configs.resolve(configs.unflatten(config_of("ours_f32", task)))
    tokenizer, shared = open_tokenizer(config)
    rows = load_splits(config, tokenizer, shared)["train"]
    order = data.Order(np.arange(len(rows), dtype=np.int32), config.seed)
    feed = text.training_feed(rows, order, task["batch_size"], process=0, processes=1).at(0)
    taken = [next(feed) for _ in range(BATCHES)]
    np.savez(path, **{name: np.stack([b[name] for b in taken]) for name in ("tokens", "targets")})


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = PROGRAM.parser(__doc__)
    parser.add_argument("--model", required=True, help="the teacher: a Hugging Face folder")
    parser.add_argument("--text", required=True, help="a .txt file; its first 60,000 characters")
    parser.add_argument("--layers", default="0,10,20,29", help="of the teacher, for the student")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of 128 tokens")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each contender")
    parser.add_argument("--contenders", default=",".join(NAMES), help="some of %(default)s")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/throughput"))
    arguments = parser.parse_args(argv)
    study.require_at_least("batch-size", arguments.batch_size, 1)
    study.require_at_least("rounds", arguments.rounds, 1)
    if not 0 < arguments.seconds < float("inf"):
        raise UsageError(f"--seconds={arguments.seconds:g}: expected a number > 0")
    for key in ("model", "text"):
        path = pathlib.Path(getattr(arguments, key))
        if not path.exists():
            raise UsageError(f"--{key}={path}: no such file or folder")
    if not re.fullmatch(r"\d+(,\d+)*", arguments.layers):
        raise UsageError(f"--layers={arguments.layers}: expected numbers such as 0,10,20,29")
    arguments.contenders = tuple(dict.fromkeys(arguments.contenders.split(",")))
    for name in arguments.contenders:
        if name not in NAMES:
            raise unknown("--contenders", name, NAMES, "contender")
    return arguments


def _lacking(name: str) -> str:
    needed = ("torch", "transformers") if name.startswith("torch") else ()
    return next((package for package in needed if find_spec(package) is None), "")


def command_of(name: str, task: str, folder: str) -> list[str]:
    """The command of a contender's process."""
    module = "experiments.throughput.language"
    return [sys.executable, "-m", module, "--contend", name, task, folder]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the contenders one by one and measures them alternately; returns what was found."""
    contenders: dict[str, dict[str, Any]] = {}
    ready = []
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = pathlib.Path(temporary)
        text = folder / "text.txt"
        text.write_text(pathlib.Path(arguments.text).read_text()[:60_000])
        task = {
            "model": str(pathlib.Path(arguments.model).resolve()),
            "text": str(text),
            "layers": [int(layer) for layer in arguments.layers.split(",")],
            "batch_size": arguments.batch_size,
            "batches": str(folder / "batches.npz"),
            **{"learning_rate": 2e-5, "weight_decay": 0.1, "clip_norm": 1.0, "hard_weight": 0.1},
        }
        write_batches(task, folder / "batches.npz")
        (folder / "task.json").write_text(json.dumps(task))
        for name in arguments.contenders:
            if lacking := _lacking(name):
                contenders[name] = {"left_out": f"{lacking} is not installed"}
                continue
            own = folder / name
            own.mkdir()
            given = (name, str(folder / "task.json"), str(own))
            one = contest.Contender(
                name,
                command_of(*given),
                log=own / "log.txt",
                cwd=pathlib.Path(__file__).resolve().parents[2],
                environment=os.environ | ({"GLIBC_TUNABLES": TUNABLE} if HUGE in name else {}),
            )
            stack.callback(one.end)
            try:
                contenders[name] = one.warm_up()
            except contest.Failed as error:
                contenders[name] = {"left_out": str(error)}
                print(f"{name}: {error}", flush=True)
                continue
            ready.append(one)
            print(f"{name}: warmed up in {contenders[name]['warm_up_s']:.0f} s", flush=True)
        busy, load = [contest.busy()], [os.getloadavg()[0]]
        speeds, failed = contest.alternate(
            ready,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            note=lambda line: print(line.replace("images/s", "tokens/s"), flush=True),
        )
        busy.append(contest.busy())
        load.append(os.getloadavg()[0])
        for one in ready:
            if one.name in speeds:
                contenders[one.name] |= {"peak_gb": one.peak_gb(), "rounds": speeds[one.name]}
        for name, error in failed.items():
            contenders[name] = {"left_out": error}
    return {"contenders": contenders, "busy_with_others": busy, "load": load}


def table(found: Mapping[str, Any]) -> tables.Table:
    """Tokens/s of each contender over the rounds, its peak memory and its ratio to `BASE`."""
    base = found["contenders"].get(BASE, {}).get("rounds")
    rows = []
    for name, one in found["contenders"].items():
        if "left_out" in one:
            rows.append({"title": f"{name}: {one['left_out']}"})
            continue
        rounds, ratio = one["rounds"], None
        if base:
            ratio = statistics.median(a / b for a, b in zip(rounds, base, strict=True))
        middle = statistics.median(rounds)
        row = {"median": middle, "min": min(rounds), "max": max(rounds), "ratio": ratio}
        rows.append({"title": name, "peak_gb": one["peak_gb"], **row})
    return tables.listing(
        rows,
        (
            Column("title", "Contender"),
            Column("median", "Tokens/s, median", "integer"),
            Column("min", "Least", "integer"),
            Column("max", "Most", "integer"),
            Column("ratio", f"Times {BASE}", "decimal", 2),
            Column("peak_gb", "Peak GB", "decimal", 2),
        ),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--contend"]:
        contend(*argv[1:])
        return 0

    def work() -> int:
        arguments = _arguments(argv)
        found = measure(arguments) | {
            "study": "throughput, language",
            "command": PROGRAM.command(argv),
            "date": datetime.date.today().isoformat(),
            "cores": os.cpu_count(),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        name = f"{pathlib.Path(arguments.model).name}-layers{arguments.layers.replace(',', '-')}"
        path = arguments.out / "results" / f"language-{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        workdir.write_json(path, found)
        print(tables.text(table(found)), end="")
        print(path)
        if max(found["busy_with_others"]) > contest.QUIET:
            print(f"WARNING: {contest.not_quiet(max(found['busy_with_others']))}", flush=True)
        return int(any("left_out" in one for one in found["contenders"].values()))

    return PROGRAM.run(work)


if __name__ == "__main__":
    sys.exit(main())
