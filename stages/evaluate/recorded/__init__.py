"""Answers that lm-eval wrote down in an earlier run, brought in as those of a trial."""
