"""Optimizers and the schedules of their learning rates, of loss weights and of temperatures."""
