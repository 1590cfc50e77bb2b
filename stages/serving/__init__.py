"""How a checkpoint is served and measured: vLLM's server, GuideLLM's load, and whether the numbers can be believed."""
