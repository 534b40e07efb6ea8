"""Alternative settings of a run: the cheapest change that makes it fit, and the fastest that fit.

Both compile every setting that they consider, except those whose arguments alone exceed the memory.
Left out on purpose: settings that change what is learned (the models; the batch size, except as a
last resort).
"""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax import tasks
from distill_jax.config import schema
from distill_jax.errors import UsageError
from distill_jax.planning import memory
from distill_jax.planning.plan import Plan, make_plan
from distill_jax.planning.targets import Target

#: The most programs that a search compiles.
MOST = 24
_MOST_TENSOR = 16
_REMAT = ("none", "dots", "full")  # values of `training.remat`, by how much they recompute
Changes = dict[str, Any]


def changed(config: ConfigDict, changes: Changes) -> ConfigDict:
    """The config with some keys replaced.

    Raises:
      UsageError: the result is not a valid config.
    """
    flat = configs.flatten(config)
    return configs.resolve(configs.unflatten({**flat, **changes}))


def fix(
    config: ConfigDict,
    target: Target,
    report: Callable[[str], None],
    plan: Callable[[ConfigDict, Target], Plan] = make_plan,
) -> str:
    """Finds the cheapest change that makes a config fit a target.

    Each change is tried alone, the cheapest first, and then together with all cheaper ones.

    Args:
      config: the resolved config, which does not fit.
      target: the devices.
      report: called with each setting before it is compiled.
      plan: makes a plan.

    Returns:
      A line for the user.
    """
    changes = list(_cheaper(config, target))
    tried = list(changes)
    together: Changes = {}
    for change in changes:
        together = {**together, **change}
        if together not in tried:
            tried.append(dict(together))
    for change in tried:
        if not _may_fit(config, target, change):
            continue
        flags = _flags(change)
        report(flags)
        if plan(changed(config, change), target).fits:
            return f"it fits with {flags}"
    return "no change of mesh, remat, accumulation, teacher dtype or batch makes it fit: more chips"


def _cheaper(config: ConfigDict, target: Target) -> Iterator[Changes]:
    """Single changes that reduce memory, those that cost the least time and quality first."""
    text, devices = config.data.name == schema.TEXT, len(target.devices)
    fsdp = config.mesh.fsdp
    while fsdp * config.mesh.tensor < devices and devices % (2 * fsdp * config.mesh.tensor) == 0:
        fsdp *= 2
        yield {"mesh.data": -1, "mesh.fsdp": fsdp}
    online = config.teacher.path and not (text and config.teacher.store)
    if online and config.teacher.compute_dtype == "float32":
        yield {"teacher.compute_dtype": "bfloat16"}
    if text and config.training.remat != "full":
        yield {"training.remat": "full"}
    rows = config.training.batch_size // config.training.accumulate
    accumulate = config.training.accumulate
    while rows % 2 == 0 and rows // 2 >= devices // config.mesh.tensor:
        rows, accumulate = rows // 2, accumulate * 2
        yield {"training.accumulate": accumulate}
    if text and online and config.teacher.quantize == "none":
        yield {"teacher.quantize": "int8"}
    tensor = config.mesh.tensor
    while text and tensor < min(_MOST_TENSOR, devices) and devices % (2 * tensor) == 0:
        tensor *= 2
        yield {"mesh.data": -1, "mesh.fsdp": devices // tensor, "mesh.tensor": tensor}
    size = config.training.batch_size
    if size % 2 == 0 and size // 2 >= devices:
        yield {"training.batch_size": size // 2}


def _may_fit(config: ConfigDict, target: Target, change: Changes) -> bool:
    """Whether a setting is valid, and its arguments alone are less than the memory."""
    try:
        run = tasks.abstract_step(changed(config, change), target.devices)
    except UsageError:
        return False
    held = memory.argument_bytes(run.state, run.frozen, run.resident, run.batches)
    return sum(held.values()) < target.memory


def _flags(changes: Changes) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items())


def settings(config: ConfigDict, target: Target) -> Iterator[list[Changes]]:
    """The meshes of a target, each with its settings, the fastest first.

    Recomputing layers costs time and an int8 teacher costs exactness, so the next setting of a mesh
    is useful only if the one before does not fit.
    """
    text, devices = config.data.name == schema.TEXT, len(target.devices)
    dtypes: list[Changes] = [{}]
    online = config.teacher.path and not config.teacher.store
    if text and online and config.teacher.quantize == "none":
        dtypes.append({"teacher.quantize": "int8"})
    remats = [{"training.remat": name} for name in _REMAT] if text else [{}]
    tensor = 1
    while tensor <= (min(devices, _MOST_TENSOR) if text else 1) and devices % tensor == 0:
        fsdp = devices // tensor
        while True:
            mesh = {
                "mesh.data": devices // tensor // fsdp,
                "mesh.fsdp": fsdp,
                "mesh.tensor": tensor,
            }
            yield [{**mesh, **dtype, **remat} for dtype in dtypes for remat in remats]
            if fsdp % 2:
                break
            fsdp //= 2
        tensor *= 2


def search(
    config: ConfigDict, target: Target, report: Callable[[str], None], most: int = MOST
) -> tuple[list[Plan], int]:
    """The settings of a target that fit, the fastest first.

    Args:
      config: the resolved config; its mesh, remat and int8 teacher are varied.
      target: the devices.
      report: called with each setting before it is compiled.
      most: the most programs that are compiled.

    Returns:
      One plan for each mesh that fits, and the number of meshes that were not tried because `most`
      was reached.
    """
    found: list[Plan] = []
    left, skipped = most, 0
    for choices in settings(config, target):
        if not left:
            skipped += 1
        for change in choices:
            if not left or not _may_fit(config, target, change):
                continue
            left -= 1
            report(_flags(change))
            plan = make_plan(changed(config, change), target)
            if plan.fits:
                found.append(plan)
                break
    return sorted(
        found, key=lambda p: (p.times.overlapped if p.times else 0, p.memory.total)
    ), skipped
