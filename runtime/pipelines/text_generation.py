"""Text-generation: a text continued, a conversation answered, whole or in pieces as they come."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import DeadlineExceeded, InputError, NumericalError, UsageError
from pinnace.runtime.arguments import check_text, check_word
from pinnace.runtime.chat.templates import ChatTemplate, with_text
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig, known_elsewhere
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.generation.prefix import Prefix
from pinnace.runtime.generation.request import DEFAULT_ROWS
from pinnace.runtime.generation.result import Generated
from pinnace.runtime.pipelines.base import CallOptions, Pipeline

# A piece of a stream is so many times the prompts that run together. At its end places stand empty: for about half an
# answer's time where answers are of unlike length, which is 6 % of a piece of eight rounds, 11 % of one of four.
_ROUNDS: Final = 8
Messages: TypeAlias = list[dict[str, Any]]
_FORM: Final = "a text (str) or a list of messages, as [{'role': 'user', 'content': '...'}]"
# What a template gets from elsewhere: the messages, and options of their own.
_RENDERED: Final = frozenset(
    {"self", "messages", "tools", "documents", "template", "add_generation_prompt", "continue_final_message"}
)
# Options that only messages make use of.
_FOR_MESSAGES: Final = ("continue_final_message", "tools", "documents", "chat_template", "chat_template_kwargs")
# Options that say what a call returns beside new text, which is all that a stream gives.
_OF_RECORDS: Final = ("return_full_text", "return_tensors", "clean_up_tokenization_spaces", "logprobs")
_GENERATION: Final = tuple(field.name for field in dataclasses.fields(GenerationConfig))


@dataclasses.dataclass(frozen=True)
class TextGenerationOptions(CallOptions):
    """Options of text-generation, beside the fields of `GenerationConfig`, which are given in the same way.

    Attributes:
        return_full_text: give the prompt too, which is the default; for messages, the conversation with its answer.
        return_tensors: give ``generated_token_ids``, the prompt's among them, in place of a text.
        clean_up_tokenization_spaces: close up spaces before punctuation.
        add_special_tokens: frame a text as the model was trained; by default as the tokenizer does.
        handle_long_generation: ``"hole"`` drops the beginning of a prompt that leaves no room for ``max_new_tokens``. A
            number that the call does not say is left half a row at most, and so is a prompt that fills ``max_length``.
        continue_final_message: go on with the last message rather than answer it; by default where the assistant
            spoke last.
        tools: passed to the chat template.
        documents: passed to the chat template.
        chat_template: a template in place of the bundle's own, or the name of one of several.
        chat_template_kwargs: further variables of the chat template.
        logprobs: give log-probabilities of the new tokens, and of this many likeliest ones too.
        shared_prefix: what `TextGenerationPipeline.prefix` computed.
        cancellation: a switch to end the call from another thread; what is there is returned.
        generation: fields of `GenerationConfig`.
    """

    return_full_text: bool | None = None
    return_tensors: bool = False
    clean_up_tokenization_spaces: bool | None = None
    add_special_tokens: bool | None = None
    handle_long_generation: str | None = None
    continue_final_message: bool | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    logprobs: int | None = None
    shared_prefix: Prefix | None = None
    cancellation: Cancellation | None = None
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("handle_long_generation", self.handle_long_generation or "hole", ["hole"])
        if self.return_tensors and self.return_full_text is not None:
            raise UsageError("return_tensors gives ids and return_full_text asks for a text; expected one of them")
        if self.shared_prefix is not None and not isinstance(self.shared_prefix, Prefix):
            raise UsageError(
                f"shared_prefix is {type(self.shared_prefix).__name__}; expected what the pipeline's prefix() computed"
            )
        kwargs = self.chat_template_kwargs
        if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
            raise UsageError(f"chat_template_kwargs is {kwargs!r}; expected a mapping of names to values")
        if own := sorted(_RENDERED & set(kwargs)):
            raise UsageError(
                f"chat_template_kwargs has {own[0]!r}, which is said elsewhere; expected a mapping of the template's "
                "further variables"
            )


class TextGenerationPipeline(Pipeline[TextGenerationOptions]):
    """Continue a text, ``[{generated_text}]``, or answer messages: ``generated_text`` is then the conversation.

    A stop string ends a text and is not part of it.

    Source: behaviour of transformers, TextGenerationPipeline.
    """

    task = "text-generation"
    bundle_tasks = ("text-generation",)
    options_type = TextGenerationOptions

    @functools.cached_property
    def generator(self) -> Generator:
        """The generator of token ids, opened at first use."""
        return Generator(self.session, self.tokenizer)

    def check_input(self, item: Any, place: str) -> str | Messages:
        """Accept a text or a list of messages."""
        if not _is_chat(item):
            return check_text(item, place, _FORM)
        for number, message in enumerate(item):
            if not isinstance(message.get("role"), str):
                raise InputError(f"message {number} of {place} has no 'role'; expected {_FORM}")
        return [dict(message) for message in item]

    def is_one(self, inputs: Any, options: TextGenerationOptions) -> bool:
        """A list of messages is one input."""
        return super().is_one(inputs, options) or _is_chat(inputs)

    def piece_size(self, options: TextGenerationOptions) -> int:
        """Some times the prompts that run together: the last of a piece leave their mates' places empty."""
        config = self.generator.config.merged(**options.generation)
        alone = config.num_beams > 1 or bool(config.prompt_lookup_num_tokens)
        together = 1 if alone else (options.batch_size or DEFAULT_ROWS) // config.num_return_sequences
        return _ROUNDS * max(1, together)

    def answer(self, items: list[str | Messages], options: TextGenerationOptions) -> list[Any]:
        """Generate from each text or conversation: one list of records for each."""
        prompts = [self._prompt(item, options) for item in items]

        def records(results: list[list[Generated]]) -> list[list[dict[str, Any]]]:
            return [
                [self._record(item, prompt, result, options) for result in rows]
                for item, prompt, rows in zip(items, prompts, results, strict=True)
            ]

        try:
            results = self.generator.generate(
                prompts, prefix=options.shared_prefix, logprobs=options.logprobs, timeout=options.time_left(),
                cancellation=options.cancellation, batch_size=options.batch_size, **options.generation,
            )  # fmt: skip
        except DeadlineExceeded:
            options.time_left()  # the call's own timeout is told, not what of it was left for this piece
            raise
        except NumericalError as error:
            error.results = None if error.results is None else records(error.results)
            raise
        return records(results)

    def stream(self, inputs: Any, **options: Any) -> Iterator[Any]:
        """Generate, and yield the new text in pieces as it comes; no piece cuts a character.

        Args:
            inputs: one input, or a list of them.
            **options: those of a call, but for those that say what it returns beside the new text.

        Yields:
            For one input the pieces; for a list ``(place, piece)``.

        Raises:
            UsageError: an option that a stream has no use for.
            NumericalError: an input has no next token; the others are brought to their end first.
        """
        read = self._read_options(options)
        for name in _OF_RECORDS:
            if options.get(name) is not None and options[name] is not False:
                raise UsageError(f"{name} is for calls, and a stream gives new text alone; leave it out")
        alone = self.is_one(inputs, read)
        items = [self.check_input(item, f"input {i}") for i, item in enumerate([inputs] if alone else inputs)]
        config = self.generator.config.merged(**read.generation)
        if config.num_return_sequences > 1:
            raise UsageError("a stream gives one sequence for each input; leave num_return_sequences at 1")
        tokens = self.generator.stream(
            [self._prompt(item, read) for item in items], prefix=read.shared_prefix, timeout=read.timeout,
            cancellation=read.cancellation, batch_size=read.batch_size, **read.generation,
        )  # fmt: skip
        return _pieces(tokens, alone)

    def prefix(self, start: str | Messages, **options: Any) -> Prefix:
        """Compute a beginning that many inputs share: a text, or the first messages of conversations.

        Give it to calls as ``shared_prefix``. Inputs that begin differently are answered all the same, without it.
        """
        read = self._read_options(options)
        item = self.check_input(start, "the beginning")
        ids = self._prompt(item, read, begins=True)
        return self.generator.prefix(ids, timeout=read.timeout, cancellation=read.cancellation)

    def prompt_ids(self, item: str | Messages, **options: Any) -> Array:
        """Return the token ids [tokens] of an input: a text as it is framed, messages as the template writes them."""
        return self._prompt(self.check_input(item, "the input"), self._read_options(options))

    @property
    def option_names(self) -> tuple[str, ...]:
        """The names of the options that a call takes: its own, and those of a generation."""
        return (*(name for name in super().option_names if name != "generation"), *_GENERATION)

    def unknown_option(self, name: str, known: Iterable[str]) -> UsageError:
        """As other pipelines do, but for transformers' words that Pinnace does not have."""
        return known_elsewhere(name) or super().unknown_option(name, known)

    def _read_options(self, options: Mapping[str, Any]) -> TextGenerationOptions:
        self._check_names(options)
        own = {name: value for name, value in options.items() if name not in _GENERATION}
        generation = {name: value for name, value in options.items() if name in _GENERATION}
        return TextGenerationOptions(**own, generation=generation)

    def _prompt(self, item: str | Messages, options: TextGenerationOptions, *, begins: bool = False) -> Array:
        """Token ids of an input; ``begins`` for a beginning, which nothing may close."""
        if isinstance(item, str):
            self._refuse_chat_options(options)
            framed = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
            ids = self.tokenizer.encode(item, **framed)
        else:
            ids = self.tokenizer.encode(self._render(item, options, begins), add_special_tokens=False)
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        array = np.array(ids, np.int64)
        return array[-self._kept(len(array), options) :] if options.handle_long_generation else array

    def _kept(self, tokens: int, options: TextGenerationOptions) -> int:
        """How many of a prompt's tokens may stay, so that there is room for what will be written."""
        config, most = self.generator.config.merged(**options.generation), self.generator.decoder.limit
        new = config.max_new_tokens or DEFAULT_NEW_TOKENS
        if config.max_new_tokens is None and config.max_length is not None:
            new = most = min(most, config.max_length)
            if tokens < most:
                return most
        if options.generation.get("max_new_tokens") is None:
            new = min(new, most // 2)  # a file or the default says how many are welcome, and not how many are needed
        elif new >= most:
            raise UsageError(f"max_new_tokens={new} leaves no room for a prompt; ask for fewer")
        return most - new

    def _refuse_chat_options(self, options: TextGenerationOptions) -> None:
        for name in _FOR_MESSAGES:
            if getattr(options, name) not in (None, {}):
                raise UsageError(f"{name} is for messages, and the input is a text; leave it out, or give messages")

    def _render(self, messages: Messages, options: TextGenerationOptions, begins: bool) -> str:
        template, name = self.template, options.chat_template
        # A name has no braces: a misspelt one must not be taken for a template that writes only itself.
        own = name is not None and (template is None or (name not in template.templates and "{" in name))
        if own:
            template, name = ChatTemplate(str(name), self.tokenizer.special_tokens_map), None
        if template is None:
            raise UsageError(
                f"{self.path.name} has no chat template to write messages out with; give chat_template, or a text"
            )
        going_on = self._goes_on(messages, options)
        try:
            return template.render(
                messages, tools=options.tools, documents=options.documents, template=name,
                add_generation_prompt=not (going_on or begins), continue_final_message=going_on,
                **options.chat_template_kwargs,
            )  # fmt: skip
        finally:
            if own:
                template.close()

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """The bundle's chat templates, read at first use; None where it has none."""
        return ChatTemplate.from_folder(self.path, self.tokenizer.special_tokens_map)

    def _goes_on(self, messages: Messages, options: TextGenerationOptions) -> bool:
        if options.continue_final_message is not None:
            return options.continue_final_message
        return bool(messages) and messages[-1].get("role") == "assistant"

    def _record(
        self, item: str | Messages, prompt: Array, result: Generated, options: TextGenerationOptions
    ) -> dict[str, Any]:
        if options.return_tensors:
            record: dict[str, Any] = {"generated_token_ids": [*prompt.tolist(), *result.ids.tolist()]}
        else:
            text: Any = result.text or ""
            if options.clean_up_tokenization_spaces:
                text = self.tokenizer.clean_up_tokenization(text)
            if options.return_full_text is not False:
                text = item + text if isinstance(item, str) else self._answered(item, text, options)
            record = {"generated_text": text}
        if result.logprobs is not None:
            record["logprobs"] = [float(value) for value in result.logprobs]
            if result.top_logprobs is not None:
                record["top_logprobs"] = [dict(step) for step in result.top_logprobs]
        if result.error is not None:
            record["error"] = str(result.error)
        return record

    def _answered(self, messages: Messages, text: str, options: TextGenerationOptions) -> Messages:
        if self._goes_on(messages, options):
            return [*messages[:-1], with_text(messages[-1], text)]
        return [*messages, {"role": "assistant", "content": text}]


def _is_chat(item: Any) -> bool:
    return isinstance(item, list | tuple) and bool(item) and all(isinstance(message, Mapping) for message in item)


def _pieces(tokens: Iterator[Any], alone: bool) -> Iterator[Any]:
    failed = None
    for token in tokens:
        failed = failed or token.error
        if token.text:
            yield token.text if alone else (token.prompt, token.text)
    if failed is not None:
        raise failed
