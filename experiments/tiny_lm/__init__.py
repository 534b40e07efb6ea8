"""A tiny language model distilled in seven ways, and by less text, on two cores."""
