"""Runs on text: decoders, compared token by token on packed rows."""
