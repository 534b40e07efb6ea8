"""On what a run fits and how long its steps take, before there is a chip.

    fits, text, content = check(config, targets.open_target("tpu:v5p:4x4x4"))

The step that a run would take is compiled ahead of time on shapes alone (`abstract`, `plan`), and
what XLA says of it is read: bytes of a device (`memory`), messages by axis of the mesh
(`collectives`), traffic with HBM (`hlo`); FLOPs are counted in the jaxpr (`flops`, `work`). From
these and a table of chips (`chips`) come the times that no step can beat (`roofline`). Left out on
purpose: evaluations, checkpoints and the memory of the host.

The modules are imported when they are needed, since `targets` has to be before JAX starts.
"""

import sys
from typing import Any


def check(config: Any, target: Any) -> tuple[bool, str, dict[str, Any]]:
    """Plans a run.

    Args:
      config: resolved.
      target: from `targets.open_target`.

    Returns:
      Whether it fits; the page for a reader, which names the cheapest change if it does not; and
      the content of plan.json.

    Raises:
      UsageError: config and target do not go together.
    """
    from distill_jax.planning import plan, report
    from distill_jax.planning.alternatives import fix

    found = plan.make_plan(config, target)
    advice = None if found.fits else fix(config, target, _say)
    return found.fits, report.to_text(found, advice), report.to_json(found, advice)


def search(config: Any, target: Any) -> tuple[bool, str, dict[str, Any]]:
    """Plans a run in many ways, and ranks those that fit; as `check`."""
    from distill_jax.planning import alternatives, report

    plans, skipped = alternatives.search(config, target, _say)
    content = {
        "target": target.name,
        "plans": [report.to_json(found) for found in plans],
        "meshes_not_tried": skipped,
    }
    if not plans:
        return False, f"{target.name}: no mesh, remat or teacher dtype fits: more chips", content
    lines = [report.ranking(plans)]
    if skipped:
        lines.append(f"{skipped} meshes were not tried: a search compiles a limited number")
    lines += ["", report.to_text(plans[0]), "", report.settings(plans[0])]
    return True, "\n".join(lines), content


def _say(setting: str) -> None:
    """Tells a waiting user what is compiled now."""
    print(f"compiling {setting}", file=sys.stderr, flush=True)
