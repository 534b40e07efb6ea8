"""Reports: figures, tables and self-contained pages, made from the files of runs.

`tables` turns results into cells of text, `figures` turns arrays into matplotlib figures, `html`
puts both on a page, `run` makes the page of one run. Left out on purpose: anything that computes a
metric (`distill_jax.evaluation` does) and anything that needs JAX, a browser script or the network.
"""

import os
import pathlib

from distill_jax.reports.tables import metrics_text

__all__ = ["metrics_text", "run_report"]


def run_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into a workdir and returns its path; see `distill_jax.reports.run`."""
    from distill_jax.reports import run  # here, so that a command that draws nothing starts quickly

    return run.run_report(workdir)
