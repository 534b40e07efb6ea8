"""Reports: figures, tables and self-contained pages, made from the files of runs.

`tables` formats results as cells of text, `figures` draws arrays with matplotlib, `html` combines
both on a page, and `run` writes the page of one run. Left out on purpose: computing metrics, which
is in `distill_jax.evaluation`, and anything that needs JAX, a browser script or the network.
"""

import os
import pathlib

from distill_jax.reports.tables import metrics_text

__all__ = ["metrics_text", "run_report"]


def run_report(workdir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into a workdir and returns its path; see `distill_jax.reports.run`."""
    from distill_jax.reports import run  # matplotlib is slow to import

    return run.run_report(workdir)
