"""The demo: what a teacher is worth to a small student, on digits that need no download."""
