"""Limits far above any use: a stranger's model.json must not make a program compute or allocate without end."""

MOST_STEP = 1_000_000
MOST_PIXELS = 2**31  # of all views of a video together
MOST_LAYERS = 2000  # of a tower, with repetitions
MOST_ITERATIONS = 100_000  # of the flow, over all levels and warps
