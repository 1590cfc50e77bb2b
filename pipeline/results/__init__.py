"""Results: what there is to see, in Python, on the terminal, in the report and in MLflow."""

from pipeline.results.results import load

__all__ = ["load"]
