"""A run in its workdir: `experiment` from config to result, `session` while it trains."""
