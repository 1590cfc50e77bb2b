"""What answers requests: vLLM, or plain transformers, behind one small protocol, under one layer of lm-eval's rules."""
