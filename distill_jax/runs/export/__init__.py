"""A trained or imported model for other libraries: what `distill-jax export` does.

`source` finds the model, `formats` is the table of what can be written, and there is one file for
each format that writes it into a new folder.
"""

from distill_jax.runs.export.formats import FORMATS, write, write_quantized

__all__ = ["FORMATS", "write", "write_quantized"]
