"""Hydra configs as a package, so that they are found as ``pkg://conf`` from a wheel."""
