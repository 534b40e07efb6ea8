"""Which views a store holds: all that an image has, or those of the first steps of a training.

A crop and a flip make finitely many views of an image, so that a store can hold the answer to each
(`Finite`) and serve any seed, any number of epochs. Colours and mixes are drawn from a continuum:
there a store holds whole steps, each with its examples and the key of its views (`Seeded`), and
a training goes through the same steps. Left out on purpose: the answers, see `store`.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array

from distill_jax import data
from distill_jax.errors import UsageError

# The options of `data.draw` and `data.view` that choose among finitely many views.
_FINITE = ("crop_padding", "padding_mode", "flip")

# How many numbers that a stored step draws its manifest keeps, to check that JAX still draws them.
_PROBED = 16


def view_options(options: data.Augment | Mapping[str, Any]) -> dict[str, Any]:
    """The options that bear on `data.view`, without those of a second, strong view.

    Args:
      options: an augmentation, or some fields of one; absent fields have their defaults.
    """
    if isinstance(options, data.Augment):
        options = dataclasses.asdict(options)
    fields = {**dataclasses.asdict(data.Augment()), **options}
    if not fields["crop_padding"]:
        del fields["padding_mode"]
    return {name: value for name, value in fields.items() if not name.startswith("strong_")}


def view_key(seed: Array | int, step: Array | int) -> Array:
    """The key of a step's views: what `data.draw` is called with.

    Args:
      seed: of the run.
      step: the number of the step, from 0.

    Returns:
      A jax PRNG key, the first of the two that a step has; the other is of its dropout.
    """
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step))[0]


def host_draws(
    seed: int, step: int, batch_size: int, options: data.Augment
) -> dict[str, np.ndarray]:
    """The numbers that a step draws for its views, computed on the host.

    Args:
      seed: of the run.
      step: the number of the step.
      batch_size: B.
      options: what to draw for.

    Returns:
      As `data.draw`; the integers are those of every backend, bit for bit.
    """
    with _on_host():
        return jax.device_get(_drawn(_words(seed, step), batch_size, options))


def _on_host() -> contextlib.AbstractContextManager:
    # Other generators give other numbers on other backends.
    if key_implementation() != "threefry2x32":
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return contextlib.nullcontext()


@functools.partial(jax.jit, static_argnums=0)
def _words(seed: int, step: Array | int) -> Array:
    return jax.random.key_data(view_key(seed, step))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(words: Array, batch_size: int, options: data.Augment) -> dict[str, Array]:
    return data.draw(jax.random.wrap_key_data(words), batch_size, options)


@dataclasses.dataclass(frozen=True)
class Finite:
    """All views that a crop and a flip make; a view has an index in [0, count).

    Attributes:
      padding: pixels of padding on each side before the crop; 0 for no crop.
      flip: whether half of the views are mirrored.
    """

    padding: int
    flip: bool

    kind: ClassVar[str] = "finite"

    @classmethod
    def of(cls, options: data.Augment) -> "Finite":
        """The views of an augmentation.

        Raises:
          UsageError: it has endlessly many.
        """
        nothing = data.Augment()
        for name, value in view_options(options).items():
            if name not in _FINITE and value != (expected := getattr(nothing, name)):
                raise UsageError(
                    f"data.augment.{name}={value!r}: it has endlessly many views; expected "
                    f"{expected!r}, or a store of the steps of one training"
                )
        return cls(options.crop_padding, options.flip)

    @property
    def side(self) -> int:
        """Offsets of a crop along one side."""
        return 2 * self.padding + 1

    @property
    def count(self) -> int:
        """V, the number of views of an image."""
        return self.side**2 * (2 if self.flip else 1)

    @property
    def identity(self) -> int:
        """The index of the view that equals the image."""
        return int(self.index({}))

    def index(self, draws: Mapping[str, Any]) -> Any:
        """Which view some draws make.

        Args:
          draws: of `data.draw`, jax or numpy; an absent one means none, so that {} is the identity.

        Returns:
          int32 [B] of the same kind; of shape [] when there are no draws.
        """
        centre = np.int32(self.padding)
        index = draws.get("dy", centre) * self.side + draws.get("dx", centre)
        if not self.flip:
            return index
        flip = draws.get("flip", np.bool_(False))
        return 2 * index + flip.astype(np.int32)

    def draws(self, index: Array) -> dict[str, Array]:
        """The inverse of `index`.

        Args:
          index: int32 [B] in [0, count).

        Returns:
          "dy", "dx" int32 [B] and "flip" bool [B], those that the scheme has.
        """
        draws = {}
        if self.flip:
            draws["flip"] = index % 2 == 1
            index = index // 2
        if self.padding:
            draws["dy"], draws["dx"] = index // self.side, index % self.side
        return draws


@dataclasses.dataclass(frozen=True)
class Seeded:
    """The views of the first steps of one training, through which another training may cycle.

    Attributes:
      steps: S, at least 1; step n of a training is row n mod S of the store.
      batch_size: B.
      seed: of the order and of the views.
    """

    steps: int
    batch_size: int
    seed: int

    kind: ClassVar[str] = "seeded"

    def __post_init__(self):
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r}: expected 1 or more")

    def keys(self, first: int, count: int) -> np.ndarray:
        """The key data of the views of as many rows, uint32 [count, words of a key]."""
        with _on_host():
            return np.stack([_words(self.seed, first + row) for row in range(count)])

    def probe(self, options: data.Augment) -> dict[str, list[float]]:
        """A few numbers that row 0 draws, by which `still_draws` recognises a store's views."""
        draws = host_draws(self.seed, 0, self.batch_size, options)
        return {
            name: np.asarray(values, np.float64).reshape(-1)[:_PROBED].tolist()
            for name, values in sorted(draws.items())
        }

    def still_draws(self, probe: Mapping[str, list[float]], options: data.Augment) -> bool:
        """Whether row 0 draws the numbers of `probe`: another version of JAX may draw others."""
        now = self.probe(options)
        return now.keys() == probe.keys() and all(
            len(now[name]) == len(values)
            # Backends may differ in the last bits of a Beta variable.
            and all(map(functools.partial(math.isclose, rel_tol=1e-4), now[name], values))
            for name, values in probe.items()
        )


def key_implementation() -> str:
    """The PRNG of new keys, such as "threefry2x32"; a key's words are of use to one PRNG alone."""
    return str(jax.random.key_impl(jax.random.key(0)))


__all__ = ["Finite", "Seeded", "host_draws", "key_implementation", "view_key", "view_options"]
