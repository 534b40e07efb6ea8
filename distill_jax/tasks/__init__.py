"""From a config to the parts of a run: the same steps for images and for text.

`base` has what both give; `images` and `language` open data and models, pair student and teacher,
build the recipe of the compiled step, and evaluate.
"""
