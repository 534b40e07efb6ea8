"""Updates one block of a README from a study's results; the prose around it is kept."""

import pathlib
from collections.abc import Callable

from distill_jax.errors import UsageError
from distill_jax.storage import write_atomically

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def fill(readme: pathlib.Path, block: Callable[[], str], *, title: str = "") -> pathlib.Path:
    """Replaces the block between the markers of a README.

    Args:
      readme: the file; if it does not exist, it is made of `title` and the markers.
      block: returns the new block, Markdown that ends with a newline; called after the markers are
        found.
      title: Markdown before the markers of a new file.

    Returns:
      The path of the README.

    Raises:
      UsageError: the file has no pair of markers.
    """
    content = readme.read_text() if readme.exists() else f"{title}{BEGIN}\n{END}\n"
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{readme}: expected the markers {BEGIN} and {END} in this file")
    write_atomically(readme, f"{before}{BEGIN}\n{block()}{END}{after}")
    return readme
