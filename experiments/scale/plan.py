"""The cases of the study: pairs, chips and batch sizes, the most informative cases first.

This file does not import JAX, because it is read before JAX may start.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SHAPES = CONFIGS / "shapes"
#: The fewest rows of a step, which is the batch size of the pairs' configs.
LEAST_ROWS = 32
LENGTH = 2048  # tokens of a row
LLAMA, QWEN, GEMMA = "llama_70b_to_8b", "qwen3_32b_to_4b", "gemma3_27b_to_4b"
PAIRS = (LLAMA, QWEN, GEMMA)
#: The target on which the pairs are compared, and rows and teachers are varied.
HUB = "tpu:v5p:4x4x4"
#: Chips of each target, in the order of the tables.
TARGETS = {
    "tpu:v5e:4x4": 16,
    "tpu:v5e:8x8": 64,
    "tpu:v5e:16x16": 256,
    "tpu:v5p:2x2x4": 16,
    "tpu:v5p:4x4x4": 64,
    "tpu:v5p:4x8x8": 256,
    "tpu:v6e:4x4": 16,
    "tpu:v6e:8x8": 64,
    "tpu:v6e:16x16": 256,
    "gpu:h100:8": 8,
    "gpu:h100:16": 16,
    "gpu:h100:32": 32,
    "gpu:h100:64": 64,
}
SIXTY_FOUR = tuple(name for name, chips in TARGETS.items() if chips == 64)
#: Shards over half of the hub's chips instead of all: the TPU compiler gathers over a whole torus
#: of three dimensions with all-reduces, and over a part of it with all-gathers.
HALF_OF_HUB = TARGETS[HUB] // 2
#: The targets on which the online teacher is compared with its stored answers.
STORED_AT = ("gpu:h100:64", HUB)
#: GPUs of several hosts, on which shards within a host are compared with the rule.
HOSTS, A_HOST = ("gpu:h100:16", "gpu:h100:32", "gpu:h100:64"), 8
#: The attention that is compared with the kernel which is the default on TPUs, and the targets.
PLAIN, PLAIN_AT = "xla", (HUB, "tpu:v5e:8x8", "tpu:v6e:4x4", "tpu:v6e:8x8")
AS_CONFIGURED, ALONE, STORED = "as configured", "", "sampled:50"


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
      pair: a file of configs/, without its suffix.
      target: a target of `distill-jax plan`.
      rows: the rows of a step.
      teacher: a folder of configs/shapes, or another one with a config.json; `ALONE` for a student
        without a teacher, `STORED` for a teacher's stored answers.
      student: a folder like the teacher's.
      shards: the number of chips that share the parameters; 0 for all of them, which is the rule.
      attention: a value of `training.attention`; "" for the rule, which is "auto".
    """

    pair: str
    target: str
    rows: int
    teacher: str = AS_CONFIGURED
    student: str = AS_CONFIGURED
    shards: int = 0
    attention: str = ""

    @property
    def name(self) -> str:
        """The name of its file."""
        parts = [self.pair, self.target.replace(":", "-"), f"{self.rows}rows"]
        if self.teacher == ALONE:
            parts.append("alone")
        elif self.teacher == STORED:
            parts.append("stored")
        elif self.teacher != AS_CONFIGURED:
            parts.append(f"from-{pathlib.PurePath(self.teacher).name}")
        if self.shards:
            parts.append(f"{self.shards}shards")
        if self.attention:
            parts.append(self.attention)
        return "-".join(parts)

    @property
    def changes(self) -> dict[str, object]:
        """Changes of the pair's config.

        By the rule, the parameters are sharded over all chips (`mesh.fsdp`), no layer is split over
        chips, and every layer is recomputed for its gradient. This needs the least memory without
        tensor parallelism.
        """
        chips = TARGETS[self.target]
        shards = self.shards or chips
        changes = {
            "mesh.data": chips // shards,
            "mesh.fsdp": shards,
            "mesh.tensor": 1,
            "training.remat": "full",
            "training.attention": self.attention or "auto",
            "training.batch_size": self.rows,
            "evaluation.batch_size": self.rows,  # not planned, but the mesh must divide it
            "data.length": LENGTH,
        }
        if self.student != AS_CONFIGURED:
            changes["student.path"] = str(SHAPES / self.student)
        if self.teacher == ALONE:
            changes |= {"teacher.path": (), "method": {"name": "supervised"}}
        elif self.teacher == STORED:
            changes |= {"teacher.path": (), "teacher.store": STORED}
        elif self.teacher != AS_CONFIGURED:
            changes["teacher.path"] = (str(SHAPES / self.teacher),)
        return changes


def rows(target: str) -> int:
    """One row for each chip, at least `LEAST_ROWS`."""
    return max(LEAST_ROWS, TARGETS[target])


def by_rule(row: Mapping[str, object]) -> bool:
    """Whether a plan, given its case's fields, has the pair's own teacher and follows the rule."""
    own = row["teacher"] == AS_CONFIGURED and row["rows"] == rows(str(row["target"]))
    return own and plain(row)


def plain(row: Mapping[str, object]) -> bool:
    """Whether a plan, given its case's fields, has the rule's shards and attention, no store."""
    return not (row["shards"] or row["attention"] or row["teacher"] == STORED)


def _at(pair: str, target: str, teacher: str = AS_CONFIGURED) -> Case:
    return Case(pair, target, rows(target), teacher)


def cases() -> tuple[Case, ...]:
    """All cases, each once, in the order in which they are made."""
    ordered = [_at(LLAMA, HUB), _at(LLAMA, HUB, ALONE), _at(QWEN, HUB)]
    gpus = [target for target in TARGETS if target.startswith("gpu")]  # planned in half a minute
    ordered += [_at(pair, target) for pair in PAIRS for target in gpus]
    ordered += [_at(pair, "gpu:h100:64", ALONE) for pair in PAIRS]
    ordered += [
        Case(pair, target, rows(target), shards=A_HOST) for pair in PAIRS for target in HOSTS
    ]
    ordered += [Case(LLAMA, HUB, rows(HUB), shards=HALF_OF_HUB)]
    ordered += [_at(pair, target, STORED) for target in STORED_AT for pair in PAIRS]
    ordered += [_at(LLAMA, target) for target in ("tpu:v5p:2x2x4", "tpu:v5e:8x8")]
    ordered += [Case(LLAMA, HUB, 256), _at(LLAMA, "tpu:v5p:4x8x8"), _at(LLAMA, "tpu:v6e:8x8")]
    ordered += [_at(LLAMA, HUB, "llama-3.1-8b"), _at(QWEN, HUB, ALONE)]
    ordered += [_at(LLAMA, target) for target in TARGETS]
    ordered += [Case(LLAMA, HUB, count) for count in (128, 512)]
    ordered += [Case(LLAMA, target, rows(target), attention=PLAIN) for target in PLAIN_AT]
    ordered += [_at(QWEN, target) for target in TARGETS]
    ordered += [_at(pair, target, ALONE) for pair in (LLAMA, QWEN) for target in SIXTY_FOUR]
    ordered += [_at(GEMMA, HUB), _at(GEMMA, HUB, ALONE)]
    ordered += [_at(GEMMA, target) for target in TARGETS]
    return tuple(dict.fromkeys(ordered))


def config(case: Case) -> dict[str, object]:
    """The unresolved config of a case: that of its pair, with the case's changes."""
    from distill_jax import config as configs

    flat = configs.flatten(configs.read(str(CONFIGS / f"{case.pair}.py")))
    changes = configs.flatten(case.changes)
    if "method.name" in changes:  # the pair's options belong to another method
        flat = {key: value for key, value in flat.items() if not key.startswith("method.")}
    return configs.unflatten(flat | changes)
