"""A README of which one block is made from a study's results: the prose around it stays."""

import pathlib
from collections.abc import Callable

from distill_jax.errors import UsageError
from distill_jax.storage import write_atomically

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def fill(readme: pathlib.Path, block: Callable[[], str]) -> pathlib.Path:
    """Puts a block between the markers of a README, in place of what stands there.

    Args:
      readme: the file; made with nothing but the markers when it does not exist.
      block: makes Markdown that ends with a line end; called once the markers are found.

    Returns:
      The path of the README.

    Raises:
      UsageError: when the file has no pair of markers.
    """
    content = readme.read_text() if readme.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{readme}: expected the markers {BEGIN} and {END} in this file")
    write_atomically(readme, f"{before}{BEGIN}\n{block()}{END}{after}")
    return readme
