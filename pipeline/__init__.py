"""The engine: from configs to a plan, from the plan to a store of artifacts, from the store to MLflow and reports."""
