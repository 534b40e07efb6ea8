"""One plan, in a process of its own: `python -m experiments.scale.case CASE.json OUT.json`.

The environment that JAX and libtpu read when they start depends on the target, so two targets
cannot share a process. If the arguments of a step alone exceed the memory of a device, nothing is
compiled.
"""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from distill_jax import tasks
from distill_jax.errors import UsageError
from distill_jax.planning import targets
from experiments.scale import plan


def make(case: plan.Case) -> dict[str, Any]:
    """The plan of a case, as `distill_jax.planning.report.to_json`, with how it was made.

    Raises:
      UsageError: the case is not possible.
    """
    targets.prepare_process(case.target)  # before JAX is imported
    from distill_jax import config as configs
    from distill_jax.planning import report
    from distill_jax.planning.plan import make_plan

    began = time.perf_counter()
    config = configs.resolve(plan.config(case))
    target = targets.open_target(case.target)
    found = _ruled_out(config, target)
    content = report.to_json(found or make_plan(config, target))
    return content | {
        "case": dataclasses.asdict(case),
        "compiled": found is None,
        "cpu_s": round(time.process_time(), 1),
        "wall_s": round(time.perf_counter() - began, 1),
    }


def _ruled_out(config: Any, target: Any) -> Any:
    """A plan without a compiled step if the step's arguments do not fit; else None."""
    from distill_jax.planning import memory
    from distill_jax.planning import plan as planned

    run = tasks.abstract_step(config, target.devices)
    held = memory.argument_bytes(run.state, run.frozen, run.resident, run.batches)
    if sum(held.values()) < target.memory:
        return None
    return planned.plan_without_program(run, target)


def main(argv: list[str]) -> int:
    """Makes one plan; returns the exit code: 0, or 2 for a case that is not possible."""
    given, out = argv
    case = plan.Case(**json.loads(pathlib.Path(given).read_text()))
    try:
        content = make(case)
    except UsageError as error:
        print(f"scale: error: {error}", file=sys.stderr)
        return 2
    from distill_jax.runs.workdir import write_json

    write_json(pathlib.Path(out), content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
