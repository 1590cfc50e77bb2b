"""Render chats with a model's own template, the same on every day: some templates print today's date."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

DATE = datetime(2024, 7, 26, tzinfo=UTC)  # what Llama 3.1's template prints when nobody tells it the date


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
    """The text of a chat; tokenize it without adding special tokens, the template has written them."""
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=DATE.strftime
    )
    return str(text)


def template_variables(template: str) -> frozenset[str]:
    """What a chat template reads from outside.  Raises jinja2.TemplateError for one that cannot be read."""
    import jinja2
    from jinja2 import meta
    from jinja2.ext import Extension

    class Generation(Extension):
        """``{% generation %}``, with which templates mark what a model has written."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", Generation])  # as transformers has it
    return frozenset(meta.find_undeclared_variables(environment.parse(template)))
