"""Verdicts on a whole sweep: numbers in, verdicts out."""
