"""Opens the teachers of a run on images: networks, or the answers that a store holds."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import data, models, parallel, teachers
from distill_jax.errors import UsageError
from distill_jax.methods import Method
from distill_jax.models import Outputs, Spec
from distill_jax.tasks.images.data import RESIDENT_LIMIT, ImageData
from distill_jax.tasks.images.evaluation import TeacherLogits, online_logits
from distill_jax.tasks.setup import frozen_shardings


@dataclasses.dataclass(frozen=True)
class OpenTeachers:
    """The teachers of a run.

    Attributes:
      teacher: computes or looks up their outputs in the step; None without teachers.
      variables: the arrays that it is applied to, on the devices: an entry for each teacher.
      outputs: the shapes of their outputs on one image, one each.
      params: the first teacher's parameters; {} where answers are stored.
      entries: what the manifest records of each.
      logits: split -> their logits for an evaluation; None without a teacher to compare with.
      notes: lines about what could not be told of them.
      trained_on: (path, what describes its training examples, {} for unknown) of each.
    """

    teacher: teachers.Teacher | None = None
    variables: list[Any] = dataclasses.field(default_factory=list)
    outputs: list[Outputs] = dataclasses.field(default_factory=list)
    params: models.Flat = dataclasses.field(default_factory=dict)
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    logits: Callable[[str], TeacherLogits] | None = None
    notes: tuple[str, ...] = ()
    trained_on: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def open_teachers(
    config: ConfigDict, mesh: Mesh, method: Method, opened: ImageData
) -> OpenTeachers:
    """Opens what `teacher.path` or `teacher.store` names.

    Raises:
      UsageError: it is missing, damaged, or made for something else.
    """
    if config.teacher.store:
        return _open_store(config, mesh, method, opened)
    if not config.teacher.path:
        return OpenTeachers()
    info = opened.train.info
    teacher, loaded = teachers.load(
        config.teacher.path,
        weights=config.teacher.weights,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        class_names=info.known_names,
        classes=config.teacher.classes,
        compute_dtype=config.teacher.compute_dtype,
    )
    images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    outputs = jax.eval_shape(teacher, loaded, images)
    variables = parallel.put(loaded, frozen_shardings(config, mesh, loaded, "teacher"))
    logits = online_logits(teacher, variables, info.num_classes)
    described = zip(
        config.teacher.path, teacher.fingerprints, teacher.specs, teacher.parameters, strict=True
    )
    return OpenTeachers(
        teacher=teacher,
        variables=variables,
        outputs=outputs,
        params=teacher.params(variables),
        entries=[_entry(*one) for one in described],
        logits=lambda split: logits,
        notes=teacher.notes,
        trained_on=tuple(zip(config.teacher.path, teacher.trained_on, strict=True)),
    )


def _entry(path: str, fingerprint: str, spec: Spec, parameters: int) -> dict[str, Any]:
    return {
        "path": path,
        "fingerprint": fingerprint,
        "model": spec.name,
        "parameters": parameters,
    }


def _open_store(config: ConfigDict, mesh: Mesh, method: Method, opened: ImageData) -> OpenTeachers:
    path = config.teacher.store
    if config.teacher.classes == "by_name":
        raise UsageError(
            f"teacher.classes='by_name': the answers of teacher.store={path!r} are stored in one "
            "order of classes; expected 'same', and 'by_name' where the answers are stored"
        )
    if method.strong_view:
        raise UsageError(
            f"teacher.store={path!r}: {config.method.name} shows a second view, whose answers are "
            "not stored; expected teacher.path alone"
        )
    required = teachers.ImageRequirements(
        train_fingerprint=data.fingerprint(opened.train),
        test_fingerprint=data.fingerprint(opened.test),
        augment=data.Augment(**config.data.augment),
        num_classes=opened.train.info.num_classes,
        class_names=opened.train.info.known_names,
        classes=config.teacher.classes,
        teacher_fingerprint=_fingerprint(config.teacher.path),
        batch_size=config.training.batch_size,
        train_ids=opened.train_ids,
    )
    teacher = teachers.open_image_store(path, required)
    variables = []
    wanted = config.teacher.resident
    if isinstance(teacher.scheme, teachers.Finite) and (
        wanted == "yes" or (wanted == "auto" and teacher.nbytes <= RESIDENT_LIMIT)
    ):
        variables = [parallel.put(teacher.resident(), parallel.replicated(mesh))]

    def logits_of(split: str) -> TeacherLogits:
        def logits(resident: dict[str, jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
            del resident
            ids = parallel.local_rows(batch["id"])
            if split == "test":
                found = teacher.test_answers()["logits"][ids]
            else:
                found = teacher.validation_answers(ids)["logits"]
            return parallel.put_rows(found, parallel.batch_sharding(mesh))

        return logits

    entry = _entry(path, teacher.fingerprints[0], teacher.specs[0], teacher.parameters[0])
    entry["stored"] = teacher.store.manifest["dtype"]
    return OpenTeachers(
        teacher=teacher,
        variables=variables,
        outputs=[teacher.whole_outputs()],
        entries=[entry],
        logits=logits_of,
        notes=teacher.notes,
        trained_on=((path, teacher.trained_on[0]),),
    )


def _fingerprint(paths: tuple[str, ...]) -> str | None:
    """Of the teacher that a config names as well as a store: the store must be that teacher's."""
    return models.load(paths[0], key="teacher.path").fingerprint if paths else None
