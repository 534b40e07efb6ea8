"""Plans a run for hardware that is not present: whether it fits, and how long a step takes.

    fits, text, content = check(config, targets.open_target("tpu:v5p:4x4x4"))

The training step is compiled ahead of time on shapes alone (`abstract`, `plan`). The compiled
program gives the memory of a device (`memory`), the collectives by axis of the mesh (`collectives`)
and the traffic with HBM (`hlo`); the jaxpr gives the FLOPs (`flops`, `step_flops`). With a table of
chips (`chips`) they give lower bounds of a step's time (`roofline`). Left out on purpose:
evaluations, checkpoints and the memory of the host.

The modules are imported on demand, because `targets` must set the environment before JAX starts.
"""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from distill_jax.planning.targets import Target


class Planned(NamedTuple):
    """The outcome of planning.

    Attributes:
      fits: whether the run fits, or any setting of a search.
      text: the page to print; if nothing fits, it names the cheapest change that makes the run fit.
      content: the content of plan.json.
    """

    fits: bool
    text: str
    content: dict[str, Any]


def check(config: "ConfigDict", target: "Target") -> Planned:
    """Plans a run.

    Args:
      config: the resolved config.
      target: from `targets.open_target`.

    Raises:
      UsageError: the config does not fit the target's devices.
    """
    from distill_jax.planning import plan, report
    from distill_jax.planning.alternatives import fix

    found = plan.make_plan(config, target)
    advice = None if found.fits else fix(config, target, _print_progress)
    return Planned(found.fits, report.to_text(found, advice), report.to_json(found, advice))


def search(config: "ConfigDict", target: "Target") -> Planned:
    """Plans a run with many settings and ranks those that fit."""
    from distill_jax.planning import alternatives, report

    plans, skipped = alternatives.search(config, target, _print_progress)
    content = {
        "target": target.name,
        "plans": [report.to_json(found) for found in plans],
        "meshes_not_tried": skipped,
    }
    if not plans:
        nothing = f"{target.name}: no mesh, remat or teacher dtype fits: more chips"
        return Planned(False, nothing, content)
    lines = [report.ranking(plans)]
    if skipped:
        lines.append(f"{skipped} meshes were not tried: a search compiles a limited number")
    lines += ["", report.to_text(plans[0]), "", report.settings(plans[0])]
    return Planned(True, "\n".join(lines), content)


def _print_progress(setting: str) -> None:
    """Tells the waiting user which setting is being compiled."""
    print(f"compiling {setting}", file=sys.stderr, flush=True)
