"""Of a prompt's log-probabilities only the rows that are asked for, where vLLM makes Python objects of them.

Its older model runner returns a row for every token of a prompt, also of those that were cached and are only padding.
Made into objects that is some 3 ms for a thousand tokens, in the process that feeds the engine: of a choice with a long
context behind it, more than the time a GPU takes for it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

_ROWS = "last_prompt_rows"


def asked_rows(number: int) -> dict[str, int]:
    """``extra_args`` of a request whose last ``number`` prompt tokens are scored."""
    return {_ROWS: number}


def read_asked_rows_alone() -> None:
    """Let vLLM look at a request's ``asked_rows``, if it has any; a second call does nothing."""
    from vllm.v1.engine import output_processor

    if _ROWS in vars(output_processor.LogprobsProcessor):
        return

    class LastRows(output_processor.LogprobsProcessor):  # type: ignore[misc, unused-ignore]
        last_prompt_rows: int | None = None

        @classmethod
        def from_new_request(cls, tokenizer: Any, request: "EngineCoreRequest") -> "LastRows":
            found: LastRows = super().from_new_request(tokenizer=tokenizer, request=request)
            params = request.sampling_params
            found.last_prompt_rows = (params.extra_args or {}).get(_ROWS) if params is not None else None
            return found

        def _update_prompt_logprobs(self, prompt_logprobs_tensors: Any) -> None:
            if (rows := self.last_prompt_rows) is not None:
                names = ("logprob_token_ids", "logprobs", "selected_token_ranks")
                some = {name: getattr(prompt_logprobs_tensors, name)[-rows:] for name in names}
                prompt_logprobs_tensors = prompt_logprobs_tensors._replace(**some)
            super()._update_prompt_logprobs(prompt_logprobs_tensors)

    output_processor.LogprobsProcessor = LastRows  # type: ignore[misc, unused-ignore]
