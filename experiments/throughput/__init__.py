"""Images a second of whole training steps: this library and PyTorch, measured alternately."""
