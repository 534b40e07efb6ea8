"""Studies: one folder each, with a question, run.py, and results/ as they came out."""
