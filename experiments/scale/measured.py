"""Compares a plan with the measured steps of its config: seconds, bytes and MFU.

    distill-jax plan --config=configs/llama_8b_to_1b.py --target=gpu:h100:1 --out=plan.json
    python -m experiments.scale.measured --config=configs/llama_8b_to_1b.py --plan=plan.json

Runs the training step of a config on this machine's devices, with random parameters and tokens
instead of weights and data. Without --plan, the plan is that of these devices (--target=local), by
the same compiler; with it, that of a chip from the table, which can be made without the chip.
--publish adds the record to this folder's results/ and README; otherwise it is written into
runs/scale. --config.key=value changes the config, as for `plan`.
"""

import argparse
import dataclasses
import datetime
import itertools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import config as configs
from distill_jax import tasks
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.parallel import describe_devices
from distill_jax.planning import plan, report, targets
from distill_jax.runs import workdir
from distill_jax.tasks import AbstractStep
from distill_jax.training.step import compile_steps
from experiments import study
from experiments.provenance import git_revision, versions
from experiments.scale import report as results

HERE = pathlib.Path(__file__).resolve().parent
#: Calls before the timing starts, and timed groups of calls, of which the median counts.
WARM, GROUPS = 2, 3


def _made(leaf: jax.ShapeDtypeStruct, make: Callable[[], jax.Array]) -> jax.Array:
    """The array of `make`, computed with the sharding of the leaf."""
    return jax.jit(lambda: make().astype(leaf.dtype), out_shardings=leaf.sharding)()


def _arguments(run: AbstractStep) -> tuple[Any, ...]:
    """The arguments of a step: random networks and tokens, and an optimizer at its start."""
    number = itertools.count()

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        key = jax.random.key(next(number))
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # the matrices of an int8 teacher
            return _made(leaf, lambda: jax.random.randint(key, leaf.shape, -127, 128))
        return _made(leaf, lambda: 0.02 * jax.random.normal(key, leaf.shape))

    def filled(tree: Any, value: int = 0) -> Any:
        return jax.tree.map(lambda a: _made(a, lambda: jnp.full(a.shape, value)), tree)

    def ids(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        key, most = jax.random.key(next(number)), run.recipe.comparison.vocab_size
        return _made(leaf, lambda: jax.random.randint(key, leaf.shape, 0, most))

    random = {"params": jax.tree.map(drawn, run.state.params)}
    fields = {field.name: getattr(run.state, field.name) for field in dataclasses.fields(run.state)}
    started = {name: filled(tree) for name, tree in fields.items() if name not in random}
    started["bad_step"] = filled(run.state.bad_step, -1)
    batch = dict(run.batches)
    given = {name: ids(batch.pop(name)) for name in ("tokens", "targets")}
    positions = batch.pop("positions")
    given["positions"] = _made(
        positions,
        lambda: jnp.broadcast_to(jnp.arange(positions.shape[-1]), positions.shape),
    )
    given |= filled(batch, 1)  # one document a row, every token of which counts
    teacher = jax.tree.map(drawn, run.frozen)
    return dataclasses.replace(run.state, **started, **random), teacher, {}, given


def measure(config: Any, steps: int) -> dict[str, Any]:
    """Compiles and runs the step of a resolved config on the devices here.

    Args:
      config: resolved.
      steps: of each of the timed groups.

    Returns:
      "plan" of these devices, as `planning.report.to_json`; "seconds_a_step", "groups";
      "peak_bytes" of the first device, None where its backend counts none; "finite".
    """
    planned = plan.make_plan(config, targets.open_target("local"))
    run = tasks.abstract_step(config, jax.devices())
    where = jax.tree.map(lambda a: a.sharding, run.state)
    compiled = compile_steps(run.recipe, run.mesh, where)
    state, *rest = _arguments(run)
    for _ in range(WARM):
        state = jax.block_until_ready(compiled(state, *rest))
    groups = []
    for _ in range(GROUPS):
        began = time.perf_counter()
        for _ in range(steps):
            state = compiled(state, *rest)
        jax.block_until_ready(state)
        groups.append((time.perf_counter() - began) / steps / run.recipe.ahead)
    stats = run.mesh.devices.flat[0].memory_stats() or {}
    return {
        "plan": report.to_json(planned),
        "seconds_a_step": statistics.median(groups),
        "groups": [round(one, 6) for one in groups],
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "finite": int(np.asarray(state.bad_step)) < 0,
        "device": describe_devices(run.mesh)[0],
    }


def _given(path: pathlib.Path, here: dict[str, Any]) -> dict[str, Any]:
    """The plan of a file; UsageError if it is of another step."""
    found = workdir.read_json(path)
    for name in ("parameters", "batch_size", "remat", "teacher_dtype", "mesh"):
        if found.get(name) != here[name]:
            raise UsageError(
                f"--plan={path}: its {name} is {found.get(name)!r}; expected {here[name]!r}, "
                "a plan of this config"
            )
    return found


def record(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """The record of one measurement.

    Raises:
      UsageError: the config or the plan cannot be used.
    """
    file = configs.read(str(arguments.config))
    config = configs.resolve(configs.apply_overrides(file, arguments.changes))
    if config.data.name != schema.TEXT:
        raise UsageError(f"data.name={config.data.name!r}: expected a config of text")
    found = measure(config, arguments.steps)
    here = found.pop("plan")
    predicted = here if arguments.plan is None else _given(arguments.plan, here)
    chip = here["chip"] or predicted["chip"]
    mfu = None
    if chip is not None:
        peak = chip["flops"] * here["devices"] * found["seconds_a_step"]
        mfu = here["flops_a_step"]["model"] / peak
    return {
        "config": arguments.config.stem,
        "changes": arguments.changes,
        "planned_for": predicted["target"],
        "planned": predicted,
        "assigned_bytes": here["bytes_a_device"]["total"],
        **found,
        "mfu": mfu,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def main(argv: Sequence[str] | None = None, home: pathlib.Path = HERE) -> int:
    """Measures; returns the exit code, see `study.Program.run`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    program = study.Program("scale", "measured")
    parser = program.parser(__doc__)
    parser.add_argument("--config", type=pathlib.Path, required=True, help="as for `plan`")
    parser.add_argument("--plan", type=pathlib.Path, help="the JSON of a plan made before")
    parser.add_argument("--steps", type=int, default=10, help="steps of each of three timed groups")
    parser.add_argument("--publish", action="store_true", help="into results/ and the README")

    def work() -> int:
        arguments, rest = parser.parse_known_args(argv)
        study.require_at_least("steps", arguments.steps, 1)
        arguments.changes = study.config_overrides(rest)
        found = record(arguments, program.command(argv))
        folder = home / "results" if arguments.publish else pathlib.Path("runs/scale")
        folder.mkdir(parents=True, exist_ok=True)
        device = found["device"].replace(" ", "-").lower()
        out = folder / f"measured-{found['config']}-{device}.json"
        workdir.write_json(out, found)
        print(f"{out}: {results.measured_line(found)}")
        if arguments.publish:
            results.write(workdir.read_json(home / "results" / results.SUMMARY), home)
        return 0

    return program.run(work)


if __name__ == "__main__":
    sys.exit(main())
