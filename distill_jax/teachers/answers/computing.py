"""Computes a teacher's answers to images for an answer store, and the manifest of the store."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from distill_jax import data, models, parallel
from distill_jax.errors import UsageError, unknown
from distill_jax.models.class_names import match
from distill_jax.storage.sharded import Manifest
from distill_jax.teachers.answers.manifest import FORMAT, Arrays
from distill_jax.teachers.answers.schemes import Finite

DTYPES = ("bfloat16", "float16", "float32")


class _Answers(NamedTuple):
    """What one call of the teacher gives: arrays by name, and the largest magnitude of each."""

    arrays: dict[str, Array]
    peaks: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class AnswerComputation:
    """A teacher, images and views: everything that decides what the stored answers are.

    Attributes:
      saved: the teacher, its classes in the order of the data; see `with_classes_of`.
      train: the full training split.
      test: the test split.
      augment: makes the views of the training images.
      batch_size: views in one call of the teacher.
      dtype: of the stored answers to the training images, one of DTYPES.
      taps: which taps to store in addition to the logits.
      compute_dtype: "float32" or "bfloat16", of the teacher's computation.
      classes: how the teacher's classes were put in the order of the data, as teacher.classes.
      mesh: the devices that share a batch; all by default.
      licence: of the teacher, as `provenance.licences` records it; {} for none.

    Raises:
      UsageError: a dtype or tap is unknown, the batch does not divide among the devices, or the
        teacher is for other images or classes.
    """

    saved: models.Saved
    train: data.Examples
    test: data.Examples
    augment: data.Augment
    batch_size: int
    dtype: str = "float16"
    taps: tuple[str, ...] = ("pooled",)
    compute_dtype: str = "float32"
    classes: str = "same"
    mesh: Mesh = dataclasses.field(default_factory=parallel.make_mesh)
    licence: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("dtype", DTYPES), ("compute_dtype", ("bfloat16", "float32"))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known, "dtype")
        parallel.check_divides(self.mesh, "batch_size", self.batch_size)
        spec = self.saved.spec
        for name, examples in (("training", self.train), ("test", self.test)):
            have = (examples.info.image_shape, examples.info.num_classes)
            if (tuple(spec.input_shape), spec.num_classes) != (tuple(have[0]), have[1]):
                raise UsageError(
                    f"teacher.path: the teacher takes {spec.input_shape} images of "
                    f"{spec.num_classes} classes; the {name} images are {have[0]} of {have[1]}"
                )
        match(spec.class_names, self.train.info.known_names, how="same", location="teacher.path")
        for tap in self.taps:
            if tap not in self._shapes.taps:
                raise unknown("--taps", tap, self._shapes.taps, "tap")

    @functools.cached_property
    def _graphdef(self) -> Any:
        spec = self.saved.spec
        module = models.abstract(
            spec.name,
            input_shape=spec.input_shape,
            num_classes=spec.num_classes,
            dtype=jnp.dtype(self.compute_dtype),
            **spec.options,
        )
        return models.split(module)[0]

    @functools.cached_property
    def _variables(self) -> Any:
        variables = (self.saved.params, self.saved.stats)
        return jax.device_put(variables, parallel.replicated(self.mesh))

    def _outputs(self, variables: Any, images: Array) -> models.Outputs:
        inputs = models.normalise(images, self.saved.spec.mean, self.saved.spec.std)
        params, stats = variables
        return models.apply(self._graphdef, params, stats, inputs, train=False)[0]

    @functools.cached_property
    def _shapes(self) -> models.Outputs:
        images = jax.ShapeDtypeStruct((1, *self.saved.spec.input_shape), jnp.float32)
        return jax.eval_shape(self._outputs, (self.saved.params, self.saved.stats), images)

    def _answer(self, variables: Any, images: Array, dtype: str) -> _Answers:
        """The teacher's answers in the dtype that is stored."""
        outputs = self._outputs(variables, images)
        arrays = {"logits": outputs.logits, **{name: outputs.taps[name] for name in self.taps}}
        peaks = {name: jnp.max(jnp.abs(a.astype(jnp.float32))) for name, a in arrays.items()}
        return _Answers({name: a.astype(dtype) for name, a in arrays.items()}, peaks)

    def _view(self, images: Array, draws: dict[str, Array]) -> Array:
        labels = jnp.zeros(images.shape[0], jnp.int32)
        return data.view(images, labels, self.saved.spec.num_classes, draws, self.augment)[0]

    def all_views(
        self, scheme: Finite, computed: Callable[[int], None]
    ) -> Callable[[np.ndarray, int], Arrays]:
        """(images uint8 [n, H, W, C], count) -> answers to the first ones, [count, V, ...].

        `computed` is called with the number of views after each call of the teacher.
        """

        @jax.jit
        def chunk(variables, images, first):
            row = jnp.minimum(
                first + jnp.arange(self.batch_size), images.shape[0] * scheme.count - 1
            )
            row = jax.lax.with_sharding_constraint(row, parallel.batch_sharding(self.mesh))
            view = self._view(images[row // scheme.count], scheme.draws(row % scheme.count))
            return self._answer(variables, view, self.dtype)

        def answers(images: np.ndarray, count: int) -> Arrays:
            rows = count * scheme.count
            images = jax.device_put(images, parallel.replicated(self.mesh))
            calls = (
                chunk(self._variables, images, np.int32(first))
                for first in range(0, rows, self.batch_size)
            )
            return {
                name: array[:rows].reshape(count, scheme.count, *array.shape[1:])
                for name, array in _joined(self._counted(calls, computed), self.dtype).items()
            }

        return answers

    def _counted(
        self, calls: Iterable[_Answers], computed: Callable[[int], None]
    ) -> Iterator[_Answers]:
        """The results of calls of the teacher, of each of which `computed` hears."""
        for found in fetch_while_computing(calls):
            computed(self.batch_size)
            yield found

    def steps(
        self, computed: Callable[[int], None]
    ) -> Callable[[Iterable[np.ndarray], np.ndarray], Arrays]:
        """(images uint8 [B, H, W, C] of each step, key data [n, words]) -> answers [n, B, ...].

        `computed` is as in `all_views`.
        """

        sharding = parallel.batch_sharding(self.mesh)

        @jax.jit
        def step(variables, images, words):
            draws = data.draw(jax.random.wrap_key_data(words), images.shape[0], self.augment)
            return self._answer(variables, self._view(images, draws), self.dtype)

        def answers(images: Iterable[np.ndarray], keys: np.ndarray) -> Arrays:
            # `keys` first in `zip`: the feed is endless, and would read one batch more in vain.
            calls = (
                step(self._variables, jax.device_put(batch, sharding), words)
                for words, batch in zip(keys, images, strict=False)
            )
            return {
                name: array.reshape(len(keys), self.batch_size, *array.shape[1:])
                for name, array in _joined(self._counted(calls, computed), self.dtype).items()
            }

        return answers

    def unaugmented(self, examples: data.Examples, ids: np.ndarray) -> Arrays:
        """The answers to images that are not augmented: float32 [n, ...]."""

        sharding = parallel.batch_sharding(self.mesh)

        @jax.jit
        def chunk(variables, images):
            labels = jnp.zeros(images.shape[0], jnp.int32)
            view = data.identity(images, labels, self.saved.spec.num_classes)[0]
            return self._answer(variables, view, "float32")

        calls = (
            chunk(self._variables, jax.device_put(batch["image"], sharding))
            for batch in data.evaluation_feed(examples, ids, self.batch_size, resident=False)
        )
        found = _joined(fetch_while_computing(calls), "float32")
        return {name: array[: len(ids)] for name, array in found.items()}

    def manifest(
        self,
        scheme: Mapping[str, Any],
        *,
        items: int,
        answers_per_item: int,
        part_size: int,
        held_out: int = 0,
    ) -> Manifest:
        """The manifest of a store without parts.

        Args:
          scheme: which views the store has, as JSON.
          items: how many images or steps.
          answers_per_item: how many views of an image, or examples of a step.
          part_size: items a part; 0 if not chosen.
          held_out: how many training images no step uses.
        """
        spec = self.saved.spec
        outputs = {"logits": self._shapes.logits} | {t: self._shapes.taps[t] for t in self.taps}
        return describe_store(
            teacher={
                "spec": spec.to_json(),
                "fingerprint": self.saved.fingerprint,
                "parameters": models.parameter_count(self.saved.params),
                "class_names": list(spec.class_names),
                "trained_on": dict(self.saved.trained_on),
                **({"licence": dict(self.licence)} if self.licence else {}),
            },
            arrays={name: list(output.shape[1:]) for name, output in outputs.items()},
            train=self.train,
            test=self.test,
            augment=self.augment,
            dtype=self.dtype,
            compute_dtype=self.compute_dtype,
            taps=self.taps,
            scheme=scheme,
            items=items,
            answers_per_item=answers_per_item,
            part_size=part_size,
            held_out=held_out,
            classes=self.classes,
        )


def describe_store(
    *,
    teacher: Mapping[str, Any],
    arrays: Mapping[str, list[int]],
    train: data.Examples,
    test: data.Examples,
    augment: data.Augment,
    dtype: str,
    compute_dtype: str,
    taps: Sequence[str],
    scheme: Mapping[str, Any],
    items: int,
    answers_per_item: int,
    part_size: int = 0,
    held_out: int = 0,
    classes: str = "",
) -> Manifest:
    """The manifest of a store of answers to images, without parts.

    Args:
      teacher: its spec, fingerprint and number of parameters.
      arrays: the shape of one answer by name, "logits" and the taps.
      train: the full training split.
      test: the test split.
      augment: makes the views.
      dtype: of the stored answers.
      compute_dtype: of the teacher's computation.
      taps: the names of the taps.
      scheme: which views the store has, as JSON.
      items: how many images or steps.
      answers_per_item: how many views of an image, or examples of a step.
      part_size: items a part; 0 if not chosen.
      held_out: how many training images no step uses.
      classes: "by_name" where the answers were put in the order of the data's classes.
    """
    info = train.info
    one_answer = sum(math.prod(shape) for shape in arrays.values()) * jnp.dtype(dtype).itemsize
    return {
        "format": FORMAT,
        "teacher": dict(teacher),
        "data": {
            "name": info.name,
            "classes": info.num_classes,
            "image_shape": list(info.image_shape),
            "train": {"examples": len(train), "fingerprint": data.fingerprint(train)},
            "test": {"examples": len(test), "fingerprint": data.fingerprint(test)},
            "held_out": held_out,
        },
        "scheme": dict(scheme),
        **({"classes": classes} if classes == "by_name" else {}),
        "augment": dataclasses.asdict(augment),
        "dtype": dtype,
        "compute_dtype": compute_dtype,
        "taps": list(taps),
        "arrays": dict(arrays),
        "items": items,
        "answers_an_item": answers_per_item,
        "answer_bytes": one_answer * answers_per_item * items,
        "part_size": part_size,
        "software": [],
        "parts": {},
    }


Result = TypeVar("Result")


def fetch_while_computing(calls: Iterable[Result]) -> Iterator[Result]:
    """The results of calls, each fetched from the devices while the next call computes."""
    pending = None
    for call in calls:
        if pending is not None:
            yield jax.device_get(pending)
        pending = call
    if pending is not None:
        yield jax.device_get(pending)


def _joined(fetched: Iterable[_Answers], dtype: str) -> Arrays:
    """The arrays of all calls, concatenated.

    Raises:
      UsageError: a number is not finite, or `dtype` does not hold it.
    """
    found = list(fetched)
    for name in found[0].peaks:
        peak = float(np.max([answers.peaks[name] for answers in found]))  # NaN where there is any
        if not math.isfinite(peak):
            raise UsageError(f"teacher.path: {name} of the teacher are not all finite numbers")
        if peak > (most := float(jnp.finfo(dtype).max)):
            raise UsageError(
                f"dtype={dtype!r}: holds numbers to {most:.6g}, and {name} of the teacher reach "
                f"{peak:.6g}; expected 'float32'"
            )
    return {
        name: np.concatenate([np.asarray(answers.arrays[name]) for answers in found])
        for name in found[0].arrays
    }
