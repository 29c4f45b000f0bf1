"""Chat templates: messages become the text that the model was trained on, whatever the template tries.

The template comes with the checkpoint and is code. It runs in minijinja, in a process of its own (`worker`) whose
steps, time, memory and output are limited, so that the worst template costs one rendering and an error.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, InputError, MissingExtra, UsageError, unknown_word
from pinnace.runtime.chat.process import ChatProcess
from pinnace.runtime.tokenization.files import SPECIAL_TOKENS, read_object, read_text

TEMPLATE_NAME: Final = "chat_template.jinja"
ADDITIONAL_TEMPLATES: Final = "additional_chat_templates/*.jinja"
MAX_TEMPLATE_CHARS: Final = 1 << 20
MAX_MESSAGES_BYTES: Final = 8 << 20
"""Longest conversation, tools and documents included, in bytes of JSON."""

_DEFAULT: Final = "default"
_TOOLS: Final = "tool_use"
# Names under which a message may carry what the model thought; templates read one or the other.
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


class ChatTemplate:
    """The chat templates of a checkpoint or bundle.

    Args:
        templates: the template, or several by name; ``"default"`` is taken where none is named, and ``"tool_use"``
            where there are tools.
        special_tokens: name such as ``bos_token`` -> text; the template sees them as variables.

    Raises:
        BundleError: no template, or one that is too long.
    """

    def __init__(self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str] | None = None) -> None:
        self.templates = {_DEFAULT: templates} if isinstance(templates, str) else dict(templates)
        self.special_tokens = dict(special_tokens or {})
        if not self.templates:
            raise BundleError("chat template: got none, expected one in tokenizer_config.json or chat_template.jinja.")
        for name, source in self.templates.items():
            if not isinstance(source, str) or len(source) > MAX_TEMPLATE_CHARS:
                raise BundleError(
                    f"chat template {name!r}: expected a text of at most {MAX_TEMPLATE_CHARS} characters."
                )
        self._processes: dict[str, ChatProcess] = {}

    @classmethod
    def from_folder(cls, path: str | Path, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate | None:
        """Read the templates of a folder; None without any.

        They are ``chat_template.jinja``, else what ``tokenizer_config.json`` states, and over these the named ones of
        ``additional_chat_templates``.

        Args:
            path: a checkpoint or a bundle.
            special_tokens: a tokenizer's ``special_tokens_map``; None reads them from ``tokenizer_config.json``.

        Raises:
            BundleError: a file that is damaged or too large.
        """
        folder = Path(path)
        settings = read_object(folder / "tokenizer_config.json")
        file = folder / TEMPLATE_NAME
        stated = read_text(file) if file.exists() else settings.get("chat_template")
        if special_tokens is None:
            found = {name: settings.get(name) for name in SPECIAL_TOKENS}
            texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
            special_tokens = {name: text for name, text in texts.items() if isinstance(text, str)}
        try:
            named = (
                {_DEFAULT: stated}
                if isinstance(stated, str)
                else {str(one["name"]): str(one["template"]) for one in stated or ()}
            )
        except (TypeError, KeyError):
            raise BundleError(f"{folder}: chat_template must be a text or a list of names and templates.") from None
        named |= {file.stem: read_text(file) for file in sorted(folder.glob(ADDITIONAL_TEMPLATES))}
        return None if stated is None and not named else cls(named, special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """Render a conversation.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, oldest first; further keys reach the template.
            add_generation_prompt: end with what introduces the assistant's answer.
            continue_final_message: end inside the last message, so that the model goes on with it.
            tools: JSON schemas of the functions that the model may call.
            documents: what the model may quote from, ``{"title": ..., "text": ...}`` each.
            template: name of the template; None chooses.
            **variables: whatever else the template reads, such as ``enable_thinking``.

        Returns:
            The text, special tokens written out: encode it with ``add_special_tokens=False``.

        Raises:
            InputError: messages of a wrong form, or that the template refuses.
            UsageError: an unknown template's name, or options that contradict one another.
            BundleError: the template is wrong, or exceeds its steps, time, memory or output.
            MissingExtra: minijinja is not installed.
        """
        if add_generation_prompt and continue_final_message:
            raise UsageError(
                "add_generation_prompt starts a new answer and continue_final_message goes on with the last: pass one."
            )
        chat: list[Message] = list(_messages(messages))
        # Unlike anything in the messages; the space shows whether the template trims them.
        mark = f"continue{secrets.token_hex(8)} "
        if continue_final_message:
            chat[-1] = with_text(chat[-1], mark)
        name = self._choose(template, bool(tools))
        line = _as_json(
            {
                **self.special_tokens,
                **variables,
                "messages": [_with_reasoning(message) for message in chat],
                "tools": None if tools is None else _objects("tools", tools),
                "documents": None if documents is None else _objects("documents", documents),
                "add_generation_prompt": add_generation_prompt,
            }
        )
        text = self._process(name).render(line)
        return _until(mark, text) if continue_final_message else text

    def close(self) -> None:
        """End the processes; the next rendering starts new ones."""
        for process in self._processes.values():
            process.close()

    def _choose(self, name: str | None, with_tools: bool) -> str:
        if name is None:
            name = _TOOLS if with_tools and _TOOLS in self.templates else _DEFAULT
        if name not in self.templates:
            raise unknown_word("chat template", name, self.templates)
        return name

    def _process(self, name: str) -> ChatProcess:
        if name not in self._processes:
            if importlib.util.find_spec("minijinja") is None:
                raise MissingExtra("chat", "a chat template")
            self._processes[name] = ChatProcess(self.templates[name])
        return self._processes[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"templates": self.templates, "special_tokens": self.special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _processes={})


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    chat = _objects("messages", messages)
    if not chat:
        raise InputError("messages: got an empty list, expected at least one message.")
    for index, message in enumerate(chat):
        if not isinstance(message.get("role"), str):
            raise InputError(f"messages[{index}]: got no role, expected {{'role': 'user', 'content': ...}}.")
    return chat


def _objects(name: str, values: Any) -> list[dict[str, Any]]:
    if not isinstance(values, (list, tuple)):
        raise InputError(f"{name}: got {type(values).__name__}, expected a list of objects.")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise InputError(f"{name}[{index}]: got {type(value).__name__}, expected an object.")
    return [dict(value) for value in values]


def _with_reasoning(message: Message) -> Message:
    """Give a message's thoughts every name under which a template may look for them, as transformers does."""
    thought = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


def with_text(message: Message, text: str) -> dict[str, Any]:
    """Return a message whose text goes on: its content, or the last part of it that has a text.

    Raises:
        InputError: it has none.
    """
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + text}
    parts = _objects("content of the last message", content) if isinstance(content, list) else []
    for part in reversed(parts):
        if isinstance(part.get("text"), str):
            part["text"] += text
            return {**message, "content": parts}
    raise InputError("continue_final_message: the last message has no text to go on with.")


def _until(mark: str, text: str) -> str:
    place = text.rfind(mark.strip())
    if place < 0:
        raise InputError("continue_final_message: the template leaves out the end of the last message.")
    return text[:place] if text.startswith(mark, place) else text[:place].rstrip()


def _as_json(variables: dict[str, Any]) -> str:
    try:
        line = json.dumps(variables)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages: got something that JSON cannot hold: {str(error)[:200]}") from None
    if len(line) > MAX_MESSAGES_BYTES:
        raise InputError(f"messages: got {len(line)} bytes of JSON, expected at most {MAX_MESSAGES_BYTES}.")
    return line
