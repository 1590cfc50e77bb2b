"""A conversation as a model's own template writes it: with all that was said in it, or as lm-eval does."""

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from stages.checkpoints.chat import DATE, template_variables


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def rendered(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True, **options: Any) -> str:
        """The conversation as text, and nothing of it lost.

        A template without a system role gets its text at the head of the first turn, and the beginning of an answer
        keeps the white space around it that some templates strip.  ``options`` are the template's own.
        """
        messages = chat_history if self.takes_system else folded(chat_history)
        text = self._text(messages, add_generation_prompt, **options)
        return text if add_generation_prompt else _with_ends(text, messages[-1]["content"])

    def rendered_as_lm_eval(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True, **options: Any
    ) -> str:
        """As lm-eval does it: without the system message where the template refuses one, and with what is stripped."""
        import jinja2

        try:
            return self._text(chat_history, add_generation_prompt, **options)
        except jinja2.exceptions.TemplateError:
            rest = [message for message in chat_history if message["role"] != "system"]
            return self._text(rest, add_generation_prompt, **options)

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template shows a system message: some refuse it, some leave it out without a word."""
        import jinja2

        probe = [{"role": "system", "content": "quokka"}, {"role": "user", "content": "numbat"}]
        try:
            return "quokka" in self._text(probe, True)
        except jinja2.exceptions.TemplateError:
            return False

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the chat template reads beside the messages and the tokenizer's own tokens."""
        given = {
            "messages",
            "add_generation_prompt",
            "raise_exception",
            "strftime_now",
            *self._tokenizer.special_tokens_map,
        }
        return template_variables(self._tokenizer.get_chat_template()) - given

    def _text(self, messages: list[dict[str, str]], add_generation_prompt: bool, **options: Any) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            strftime_now=DATE.strftime,  # or what was asked yesterday could not be compared with today's
            **options,
        )
        return text


def folded(chat_history: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The conversation with what its system messages say at the head of the first turn of the user."""
    said = [message["content"] for message in chat_history if message["role"] == "system"]
    rest = [dict(message) for message in chat_history if message["role"] != "system"]
    for message in itertools.islice((each for each in rest if each["role"] == "user"), 1):
        message["content"] = "\n\n".join([*said, message["content"]])
    return rest


def _with_ends(text: str, beginning: str) -> str:
    """``text`` ends with the beginning of an answer: with the white space around that, too."""
    core = beginning.strip()
    if text.endswith(beginning) or not core:
        return text
    return text.rstrip().removesuffix(core) + beginning if text.rstrip().endswith(core) else text
