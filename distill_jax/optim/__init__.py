"""`optimizers` and their learning rates; `schedules` of loss weights and temperatures."""
