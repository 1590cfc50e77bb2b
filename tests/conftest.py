from tests.stages.conftest import smollm2, tiny_model  # noqa: F401
