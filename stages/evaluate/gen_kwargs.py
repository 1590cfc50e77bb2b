"""The generation arguments that lm-eval's tasks and sweeps may name."""

SAMPLING_NAMES = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
)  # fmt: skip
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one thing, four names
OTHER_NAMES = ("do_sample", "until", "num_beams", "use_cache")
KNOWN_NAMES = (*SAMPLING_NAMES, *LENGTH_NAMES, *OTHER_NAMES)
DEFAULT_MAX_TOKENS = 256  # lm-eval's, for tasks that name none
