"""Hugging Face folders of decoders: `families`, `names` translate, `reading`, `writing` do I/O.

A new family is a row of `family_table`, with its tensors' names in `names`.
"""
