"""Stages: plain functions, each making one kind of artifact from paths and a config.

A stage module imports its heavy libraries inside its functions, so that a plan can read every config and version
without loading torch.
"""
