"""Answer and score documents of lm-eval tasks."""
