"""Times of a step: three quotients, and the links that messages go over."""

import numpy as np
import pytest

from distill_jax import parallel
from distill_jax.planning import roofline
from distill_jax.planning.chips import CHIPS
from distill_jax.planning.collectives import Collective


def test_times_are_quotients():
    chip, mesh = CHIPS["h100"], parallel.make_mesh(2, 2, 2)
    sent = [Collective("all-gather", ("fsdp",), 2, 1, 900_000_000)]
    found = roofline.times(chip, mesh, (), flops=8 * 989 * 10**9, traffic=3350, messages=sent)
    assert np.isclose(found.compute, 1e-3)
    assert np.isclose(found.memory, 1e-9)
    assert np.isclose(found.interconnect, 2e-3)
    assert found.bound == "interconnect" and found.overlapped == found.interconnect
    assert np.isclose(found.without_overlap, 3e-3 + 1e-9)


class Placed:
    """A device of a slice, which a test needs no libtpu for."""

    platform, device_kind = "tpu", "TPU v5"

    def __init__(self, *coords):
        self.coords = coords


def slice_mesh(shape, sizes):
    """A mesh of a slice in the plain order of its chips."""
    grid = np.array([Placed(*place) for place in np.ndindex(*shape)], object).reshape(sizes)
    return type("Mesh", (), {"devices": grid, "axis_names": parallel.AXES})


@pytest.mark.parametrize(
    ("shape", "sizes", "axes", "links"),
    [
        ((4, 4, 4), (1, 16, 4), ("fsdp",), 4),  # two dimensions, each a closed ring
        ((4, 4, 4), (1, 16, 4), ("tensor",), 2),
        ((4, 4, 4), (1, 32, 2), ("tensor",), 1),  # half a dimension is a line
        ((4, 4, 4), (1, 16, 4), ("fsdp", "tensor"), 6),
        ((2, 2, 1), (1, 4, 1), ("fsdp",), 2),  # too short for rings
    ],
)
def test_links_are_those_of_the_dimensions_that_an_axis_spans(shape, sizes, axes, links):
    chip = CHIPS["v5p"]
    assert roofline.speed(chip, slice_mesh(shape, sizes), shape, axes) == links * chip.link


def test_gpus_of_one_host_have_nvlink_and_others_the_network():
    chip = CHIPS["h100"]
    grid = np.arange(16).reshape(2, 8, 1)
    mesh = type("Mesh", (), {"devices": grid, "axis_names": parallel.AXES})
    assert roofline.speed(chip, mesh, (), ("fsdp",)) == chip.link
    assert roofline.speed(chip, mesh, (), ("data",)) == chip.network
