"""Where the teacher's answers of a run come from: opened, checked, and described."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import data, models, parallel, teachers
from distill_jax.errors import UsageError
from distill_jax.methods import Method
from distill_jax.models import Outputs, Spec
from distill_jax.tasks.images.evaluate import Answer, online_answer


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run's teacher.

    Attributes:
      teacher: gives the answers in the step; None without one.
      variables: what it is applied to, on the devices: an entry for each teacher.
      outputs: shapes of the answers to one image, one a teacher.
      params: the first teacher's parameters; {} where answers are stored.
      entries: one a teacher, for the manifest.
      answer: (split, ids of it) -> the logits for an evaluation; None without a teacher that is
        worth comparing with.
    """

    teacher: teachers.Teacher | None
    variables: list[Any]
    outputs: list[Outputs]
    params: models.Flat
    entries: list[dict[str, Any]]
    answer: Callable[[str], Answer] | None


def open_teacher(
    config: ConfigDict,
    method: Method,
    mesh: Mesh,
    splits: dict[str, data.Examples],
    train_ids: np.ndarray,
    resident_limit: int,
) -> Opened:
    """Opens what `teacher.path` or `teacher.store` names.

    Raises:
      UsageError: it is missing, damaged, or made for something else.
    """
    if config.teacher.store:
        return _stored(config, method, mesh, splits, train_ids, resident_limit)
    if not config.teacher.path:
        return Opened(None, [], [], {}, [], None)
    info = splits["train"].info
    teacher, variables = teachers.load(
        config.teacher.path,
        weights=config.teacher.weights,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        compute_dtype=config.teacher.compute_dtype,
    )
    images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    outputs = jax.eval_shape(teacher, variables, images)
    where = parallel.shardings({"teacher": variables}, mesh, config.mesh.replicate)["teacher"]
    variables = parallel.put(variables, where)
    answer = online_answer(teacher, variables, info.num_classes)
    described = zip(
        config.teacher.path, teacher.fingerprints, teacher.specs, teacher.parameters, strict=True
    )
    entries = [_entry(*one) for one in described]
    params = teacher.params(variables)
    return Opened(teacher, variables, outputs, params, entries, lambda split: answer)


def _entry(path: str, fingerprint: str, spec: Spec, parameters: int) -> dict[str, Any]:
    return {
        "path": path,
        "fingerprint": fingerprint,
        "model": spec.name,
        "parameters": parameters,
    }


def _stored(config, method, mesh, splits, train_ids, resident_limit) -> Opened:
    path = config.teacher.store
    if method.strong_view:
        raise UsageError(
            f"teacher.store={path!r}: {config.method.name} shows a second view, whose answers are "
            "not stored; expected teacher.path alone"
        )
    required = teachers.ImageRequirements(
        train_fingerprint=data.fingerprint(splits["train"]),
        test_fingerprint=data.fingerprint(splits["test"]),
        augment=data.Augment(**config.data.augment),
        num_classes=splits["train"].info.num_classes,
        teacher_fingerprint=_fingerprint(config.teacher.path),
        batch_size=config.training.batch_size,
        train_ids=train_ids,
    )
    teacher = teachers.open_image_store(path, required)
    variables = []
    finite = isinstance(teacher.scheme, teachers.Finite)
    wanted = config.teacher.resident
    if finite and (wanted == "yes" or wanted == "auto" and teacher.nbytes <= resident_limit):
        variables = [parallel.put(teacher.resident(), parallel.replicated(mesh))]

    def answer(split: str) -> Answer:
        def logits(store, batch):
            ids = parallel.local_rows(batch["id"])
            if split == "test":
                found = teacher.test_answers()["logits"][ids]
            else:
                found = teacher.validation_answers(ids)["logits"]
            return parallel.put_rows(found, parallel.batch_sharding(mesh))

        return logits

    entry = _entry(path, teacher.fingerprints[0], teacher.specs[0], teacher.parameters[0])
    entry["stored"] = teacher.store.manifest["dtype"]
    return Opened(teacher, variables, [teacher.abstract(1)], {}, [entry], answer)


def _fingerprint(paths: tuple[str, ...]) -> str | None:
    """Of the teacher that a config names beside the store, which must then be the store's."""
    return models.load(paths[0], key="teacher.path").fingerprint if paths else None
