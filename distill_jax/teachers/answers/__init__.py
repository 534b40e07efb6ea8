"""A teacher's answers, computed once and kept on disk: to every view of an image, or to tokens.

For images, `schemes` says which views a store has, `computing` runs the teacher, `images` writes
stores and `stored_teacher` reads them in training. `text` does both for text, where `sparse` is
what is kept of a distribution over a vocabulary. `store` is the folder that all of them share, and
`manifest` records what its answers were computed from.
"""
