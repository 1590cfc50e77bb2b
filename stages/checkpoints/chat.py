"""Render chats with a model's own template, the same on every day: some templates print today's date."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DATE = datetime(2024, 7, 26, tzinfo=UTC)  # what Llama 3.1's template prints when nobody tells it the date


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
    """The text of a chat; tokenize it without adding special tokens, the template has written them."""
    text = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=DATE.strftime
    )
    return str(text)


def stored_template(directory: Path) -> str | None:
    """The chat template that a tokenizer's directory holds, the default one of several; None where it has none."""
    file, settings = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None


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
