"""One training step, whatever its size: from a config to new weights. Knows nothing of run folders."""
