"""From trials to a DAG of steps: facts of the world first, then pure functions."""
