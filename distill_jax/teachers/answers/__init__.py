"""A teacher's answers, computed once and kept on disk: to every view of an image, or to tokens.

`schemes` says what is asked, `computing` asks, `writing` and `text` write, `reading` serves the
answers to a run, `sparse` is what is kept of a distribution over a vocabulary, and `manifest` says
what a folder was made from.
"""
