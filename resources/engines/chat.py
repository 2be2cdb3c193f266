"""A conversation as the text that a model is shown, by the chat template of its tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from resources.engines import ChatMessage
from resources.engines.checkpoint import one_line
from resources.errors import UserError


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in folder `path`; runs no code of the model's. Raises UserError for a broken one."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        raise UserError(f"model {path}: the tokenizer can't be loaded ({one_line(error)})") from error


def render_chat(tokenizer: Any, messages: Sequence[ChatMessage], path: Path) -> str:
    """The prompt; where the assistant spoke last, it ends with the beginning of its answer.

    Raises UserError where the model has no template, or its template fails.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"model {path} has no chat template; evaluate it without 'chat' or add its chat_template.jinja"
        )
    begun = bool(messages) and messages[-1]["role"] == "assistant"
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
            )
        )
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        line = _template_line(error)
        raise UserError(
            f"the chat template of model {path} failed{f' in line {line}' if line else ''}: "
            f"{one_line(error)}; change the conversation or mend the template"
        ) from error


def _template_line(error: BaseException) -> int | None:
    """The line of a Jinja template in which an exception arose, where Jinja knows it."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
