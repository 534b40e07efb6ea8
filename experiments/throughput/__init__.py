"""Images a second of whole training steps: this library beside PyTorch, alternating in one run."""
