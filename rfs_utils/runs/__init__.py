"""A training run from start to end and the folder it leaves: checkpoints, logs, pages, comparisons, exports."""
