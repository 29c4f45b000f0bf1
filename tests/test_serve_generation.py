"""Generations of many requests at work together: each row as alone, and none that is hurt by another's end or error."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pinnace.errors import DeadlineExceeded, InputError, MachineError
from pinnace.runtime.chat.templates import ChatTemplate
from pinnace.runtime.generation.decoder import Batch
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.generation.slots import Reading, Slots
from pinnace.runtime.server import forms, scheduler
from pinnace.runtime.server.scheduler import Scheduler
from pinnace.runtime.server.slot_generator import SlotGenerator
from pinnace.runtime.server.work import Call
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from tests.generation_bundles import LENGTH, SPECIAL, MakeBundle, Opened, decoder_of, opened, prompts
from tests.serving import CHAT, ON, PATIENCE, TEXT, Client, Served, served

__all__ = ["decoder_of", "opened"]


TEXTS = [
    "river (noun):", "glass (noun): a brittle", "slowly (adv):", "falcon (noun):", "boat", "a", "ship (noun):",
    "pier (noun): a platform", "the word galley means a ship that is moved by", "to run:", "Example:", "oar",
]  # fmt: skip


@pytest.fixture(scope="module")
def service(decoder_of: MakeBundle) -> Iterator[Served]:
    with served({"lm": decoder_of("apertus-ort"), "grows": decoder_of("apertus-onnx")}, slots=4) as made:
        yield made


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step had."""
    seen: list[int] = []
    step = Slots.step

    def watched(self: Slots) -> Iterator[Any]:
        seen.append(self.running)
        return step(self)

    monkeypatch.setattr(Slots, "step", watched)
    return seen


@pytest.mark.parametrize("name", ["lm", "grows"])
def test_greedy_rows_of_many_requests_are_as_alone(service: Served, widths: list[int], name: str) -> None:
    pipe = service.serving.service.models[name].pipe
    options: dict[str, Any] = {"return_full_text": False, **ON}
    want = [pipe(text, max_new_tokens=10 + i, **options)[0]["generated_text"] for i, text in enumerate(TEXTS)]
    del widths[:]

    def ask(place: int) -> Any:
        asked = {"model": name, "prompt": TEXTS[place], "max_tokens": 10 + place, **ON}
        if place % 2:
            events = service.client.events(TEXT, **asked)[:-1]
            return "".join(event["choices"][0]["text"] for event in events)
        return service.client.good(TEXT, **asked)["choices"][0]["text"]

    with ThreadPoolExecutor(len(TEXTS)) as pool:
        assert list(pool.map(ask, range(len(TEXTS)))) == want
    assert 1 < max(widths) <= 4


def test_seeded_samples_of_many_requests_are_as_alone(service: Served) -> None:
    pipe = service.serving.service.models["lm"].pipe
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.8, "seed": 5, "presence_penalty": 0.5}
    alone = [
        pipe(text, max_new_tokens=12, do_sample=True, num_return_sequences=2, return_full_text=False, **options)
        for text in TEXTS[:6]
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(
                lambda text: service.client.good(TEXT, model="lm", prompt=text, max_tokens=12, n=2, **options),
                TEXTS[:6],
            )
        )
    got = [[choice["text"] for choice in answer["choices"]] for answer in answers]
    assert got == [[record["generated_text"] for record in records] for records in alone]


def test_texts_that_the_bundle_asks_for_are_choices_of_their_own(
    service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = service.serving.service.models["lm"]._generator
    monkeypatch.setattr(generator, "config", generator.config.merged(num_return_sequences=2, do_sample=True))
    asked: dict[str, Any] = {"model": "lm", "prompt": TEXTS[:2], "max_tokens": 5, "seed": 1, **ON}
    choices = service.client.good(TEXT, **asked)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    three = service.client.good(TEXT, n=3, **asked)["choices"]
    assert [choice["index"] for choice in three] == [*range(6)] and three[0] == choices[0]
    assert "temperature above 0" in service.client.refused(400, TEXT, temperature=0, **asked)["message"]


def test_a_client_that_leaves_frees_its_row(service: Served) -> None:
    client = service.client
    before = client.metric("pinnace_requests_total", route=TEXT, status="499")
    # As many rows as there are slots, then one that waits: all are long, and one leaves before its turn has come.
    long = [client.begin(TEXT, model="lm", prompt="a", max_tokens=1900, stream=True, **ON) for _ in range(4)]
    client.wait(lambda: client.metric("pinnace_running_rows", model="lm") == 4)
    waiting = client.begin(TEXT, model="lm", prompt="a", max_tokens=1900, **ON)
    client.wait(lambda: client.metric("pinnace_queue_depth", model="lm") == 1)
    waiting.close()
    client.wait(lambda: client.metric("pinnace_queue_depth", model="lm") == 0)
    for one in long:
        one.close()
    client.wait(lambda: client.metric("pinnace_requests_in_flight", model="lm") == 0)
    assert client.metric("pinnace_running_rows", model="lm") == 0
    client.wait(lambda: client.metric("pinnace_requests_total", route=TEXT, status="499") == before + 5)


def test_after_a_hundred_aborted_streams_the_next_answer_is_good(service: Served) -> None:
    client = service.client
    want = client.good(TEXT, model="lm", prompt="river (noun):", max_tokens=20)["choices"]
    for place in range(100):
        with client.begin(TEXT, model="lm", prompt=TEXTS[place % 12], max_tokens=1000, stream=True, **ON) as stream:
            if place % 3:
                stream.recv(1 << (place % 9))
    assert client.good(TEXT, model="lm", prompt="river (noun):", max_tokens=20)["choices"] == want
    client.wait(lambda: client.metric("pinnace_requests_in_flight", model="lm") == 0)
    assert not service.faults


def shared(opened: Opened, name: str, slots: int = 8) -> tuple[Generator, SlotGenerator]:
    generator = opened.generator(name)
    return generator, SlotGenerator(generator, Scheduler(generator.decoder, slots))


@pytest.mark.parametrize("name", ["ort", "onnx", "static"])
def test_rows_come_and_go_and_each_is_as_alone(opened: Opened, name: str) -> None:
    alone, together = shared(opened, name, slots=3)
    rows = prompts(5, 9, 4, 30, 1, 17, 2, 8)
    counts = [40, 3, 25, 60, 7, 1, 50, 12]
    want = [alone.generate([row], max_new_tokens=n)[0][0].ids.tolist() for row, n in zip(rows, counts, strict=True)]

    def ask(place: int) -> list[int]:
        if place == 2:  # leaves in the middle
            stream = together.stream([rows[place]], max_new_tokens=counts[place])
            return [int(next(stream).id or 0) for _ in range(5)]
        return together.generate([rows[place]], max_new_tokens=counts[place])[0][0].ids.tolist()  # type: ignore[no-any-return]

    want[2] = want[2][:5]
    for _ in range(3):
        with ThreadPoolExecutor(len(rows)) as pool:
            assert list(pool.map(ask, range(len(rows)))) == want


def test_limits_of_one_request_leave_the_others(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = shared(opened, "ort")
    step = Slots.step

    def slow(self: Slots) -> Iterator[Any]:
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Slots, "step", slow)
    rows = prompts(5, 9, 4)
    want = alone.generate(rows[:1], max_new_tokens=60)[0][0].ids.tolist()
    call = Call()
    with ThreadPoolExecutor(4) as pool:
        whole = pool.submit(together.generate, rows[:1], max_new_tokens=60)
        timed = pool.submit(together.generate, rows[1:2], max_new_tokens=100, timeout=0.3)
        ended = pool.submit(together.generate, rows[2:], max_new_tokens=100, max_time=0.3)
        cancelled = pool.submit(together.generate, rows[1:], max_new_tokens=100, cancellation=call)
        time.sleep(0.3)
        call.cancel()
        with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
            timed.result()
        assert ended.result()[0][0].reason == "time"
        assert [one[0].reason for one in cancelled.result()] == ["cancelled", "cancelled"]
        assert whole.result()[0][0].ids.tolist() == want
    assert together._scheduler.running == together._scheduler.waiting == 0


def test_a_failed_step_costs_the_request_that_came_last(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = shared(opened, "ort")
    first, second = prompts(5, 9)
    want = alone.generate([first], max_new_tokens=30)[0][0].ids.tolist()
    step = Slots.step

    def crowded(self: Slots) -> Iterator[Any]:
        if self.running > 1:
            raise MachineError("not enough memory for two")
        return step(self)

    stream = together.stream([first], max_new_tokens=30)
    got = [int(next(stream).id or 0)]
    monkeypatch.setattr(Slots, "step", crowded)
    with pytest.raises(MachineError, match="for two"):
        together.generate([second] * 2, max_new_tokens=100)
    got += [int(token.id or 0) for token in stream]
    assert got == want

    class Panic(BaseException):
        """What a library in Rust raises."""

    def panic(self: Slots) -> Iterator[Any]:
        raise Panic

    monkeypatch.setattr(Slots, "step", panic)
    with pytest.raises(Panic):
        together.generate([second], max_new_tokens=4)
    monkeypatch.setattr(Slots, "step", step)
    assert together.generate([first], max_new_tokens=30)[0][0].ids.tolist() == want


def test_a_prompt_that_fails_fails_alone(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, together = shared(opened, "ort")
    rows = prompts(5, 9, 4, 7)
    want = [alone.generate([row], max_new_tokens=20)[0][0].ids.tolist() for row in rows]
    gate, prompt = threading.Event(), Slots._prompt

    def picky(self: Slots, given: Any, *rest: Any) -> Any:
        gate.wait(PATIENCE)
        if any(len(one) == 9 for one in given):
            raise MachineError("too long for this machine")
        return prompt(self, given, *rest)

    monkeypatch.setattr(Slots, "_prompt", picky)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(together.generate, [row], max_new_tokens=20) for row in rows]
        while together._scheduler.waiting < 3:  # one is at the gate, the others come together behind it
            time.sleep(0.01)
        gate.set()
        with pytest.raises(MachineError, match="too long"):
            asked[1].result()
        assert [asked[i].result()[0][0].ids.tolist() for i in (0, 2, 3)] == [want[i] for i in (0, 2, 3)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens a row each run of the graph added; long prompts are read by eight."""
    monkeypatch.setattr(scheduler, "PROMPT_PIECE", 8)
    seen: list[int] = []
    run = Batch.run

    def watched(self: Batch, ids: Any, *rest: Any) -> Any:
        seen.append(ids.shape[1])
        return run(self, ids, *rest)

    monkeypatch.setattr(Batch, "run", watched)
    return seen


@pytest.mark.parametrize("name", ["ort", "onnx", "static", "ort-all"])
def test_rows_step_and_enter_while_a_long_prompt_is_read(opened: Opened, runs: list[int], name: str) -> None:
    alone, together = shared(opened, name)
    first, long, short = prompts(5, 45, 6)
    want = [alone.generate([row], max_new_tokens=60)[0][0].ids.tolist() for row in (first, long, short)]
    stream = together.stream([first], max_new_tokens=60)
    got = [int(next(stream).id or 0)]
    del runs[:]
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(together.generate, [long], max_new_tokens=60, num_return_sequences=1)
        entering = pool.submit(together.generate, [short], max_new_tokens=60)
        got += [int(token.id or 0) for token in stream]
        assert [got, reading.result()[0][0].ids.tolist(), entering.result()[0][0].ids.tolist()] == want
    pieces = [place for place, size in enumerate(runs) if size == 8]
    assert len(pieces) == 5 and max(runs) == 8
    assert all(1 in runs[before:after] for before, after in itertools.pairwise(pieces))
    # Rows with the same prompt share what was read.
    del runs[:]
    options: dict[str, Any] = {"do_sample": True, "seed": 3, "max_new_tokens": 9, "num_return_sequences": 3}
    many = [row.ids.tolist() for row in together.generate([long], **options)[0]]
    assert sum(size for size in runs if size > 1) == 45
    assert many == [row.ids.tolist() for row in alone.generate([long], **options)[0]]


def test_rows_step_while_many_short_prompts_come(opened: Opened, runs: list[int]) -> None:
    """Two prompts of four tokens fit a piece of eight; ten of them at once do not hold up the row that runs."""
    alone, together = shared(opened, "ort", slots=16)
    first, *rest = prompts(5, *[4] * 10)
    options: dict[str, Any] = {"max_new_tokens": 40}
    want = [row[0].ids.tolist() for row in alone.generate([first, *rest], **options)]
    stream = together.stream([first], **options)
    got = [int(next(stream).id or 0)]
    del runs[:]
    with ThreadPoolExecutor(1) as pool:
        burst = pool.submit(together.generate, rest, **options)
        got += [int(token.id or 0) for token in stream]
        assert [got, *(row[0].ids.tolist() for row in burst.result())] == want
    read = [place for place, size in enumerate(runs) if size == 4]
    assert len(read) == 5, runs
    assert all(1 in runs[before:after] for before, after in itertools.pairwise(read))


def test_a_long_prompt_that_ends_early_leaves_the_others(
    opened: Opened, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together = shared(opened, "ort")
    first, long = prompts(5, 60)
    want = [alone.generate([row], max_new_tokens=60)[0][0].ids.tolist() for row in (first, long)]
    stream = together.stream([first], max_new_tokens=60)
    got = [int(next(stream).id or 0)]
    read, third = Reading.read, threading.Event()

    def watched(self: Reading, most: int) -> Any:
        if int(self.batch.cache.lengths[0]) == 24:
            third.set()
            time.sleep(0.01)  # so that it is still under way when it is told to end
        return read(self, most)

    monkeypatch.setattr(Reading, "read", watched)
    call = Call()
    with ThreadPoolExecutor(1) as pool:
        cancelled = pool.submit(together.generate, [long], max_new_tokens=60, cancellation=call)
        assert third.wait(PATIENCE)
        call.cancel()
        assert cancelled.result()[0][0].reason == "cancelled"

        def failing(self: Reading, most: int) -> Any:
            if int(self.batch.cache.lengths[0]) == 24:
                raise MachineError("not enough memory for the fourth piece")
            return read(self, most)

        monkeypatch.setattr(Reading, "read", failing)
        with pytest.raises(MachineError, match="fourth piece"):
            together.generate([long], max_new_tokens=60)
        monkeypatch.setattr(Reading, "read", read)
        assert together.generate([long], max_new_tokens=60)[0][0].ids.tolist() == want[1]
    assert got + [int(token.id or 0) for token in stream] == want[0]
    assert together._scheduler.running == together._scheduler.waiting == 0


@pytest.mark.parametrize("error", [InputError, MachineError])
def test_rows_wait_where_the_memory_is_short(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, widths: list[int], error: type[Exception]
) -> None:
    alone, together = shared(opened, "ort")
    rows = prompts(5, 6, 7, 8)
    want = [alone.generate([row], max_new_tokens=30)[0][0].ids.tolist() for row in rows]
    decoder, check = alone.decoder, alone.decoder.check_memory

    def small(count: int, tokens: int, prompt: int) -> None:
        if count > 2:
            raise error("room for two")
        check(count, tokens, prompt)

    monkeypatch.setattr(decoder, "check_memory", small)
    del widths[:]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(together.generate, [row], max_new_tokens=30) for row in rows]
        assert [one.result()[0][0].ids.tolist() for one in asked] == want
    assert max(widths) == 2


def test_one_request_asks_for_so_many_rows(opened: Opened) -> None:
    _, together = shared(opened, "ort")
    client_rows = prompts(*[3] * 20)
    got = together.generate(client_rows, max_new_tokens=2, do_sample=True, seed=1, num_return_sequences=3)
    assert [len(row.ids) for rows in got for row in rows] == [2] * 60
    assert together._call.tokens_in == 60 and together._call.tokens_out == 120
    beams = together.generate(client_rows[:2], max_new_tokens=3, num_beams=2)
    assert together._call.tokens_out == 120 + sum(len(one[0].ids) for one in beams)
    assert LENGTH > 5


@pytest.fixture(scope="module")
def tiny(decoder_of: MakeBundle) -> Iterator[Client]:
    """A model that writes any bytes, special tokens among them."""
    with served({"tiny": decoder_of("ort")}) as made:
        yield made.client


def test_tokens_begin_where_the_text_says(tiny: Client, service: Served) -> None:
    asked: dict[str, Any] = {"prompt": "abc", "max_tokens": 60, "logprobs": 0, "temperature": 1.5, "seed": 1}
    held: dict[str, Any] = {"model": "lm", "prompt": "river (noun):", "max_tokens": 30, "logprobs": 0}
    without = 0
    for client, body in (
        (tiny, asked),
        (service.client, {**held, "stop": ["person who isn't", "of the sea", " a person. Also"]}),
    ):
        choice = client.good(TEXT, **body)["choices"][0]
        found, text = choice["logprobs"], choice["text"]
        assert found["text_offset"] == sorted(found["text_offset"]) and len(found["tokens"]) > 9
        for token, begin in zip(found["tokens"], found["text_offset"], strict=True):
            if token in SPECIAL or "\ufffd" in token:
                without += 1
            else:
                # Parts of characters that came to nothing are given with what follows them.
                given = text[begin:].lstrip("\ufffd")[: len(token)]
                assert token.startswith(given), (token, begin, text)
            assert begin <= len(text)
        events = client.events(TEXT, **body)[:-1]
        streamed = [one["choices"][0]["logprobs"]["text_offset"] for one in events if one["choices"][0]["logprobs"]]
        # What a stop string will cut is not known before its last token.
        assert [min(begin, len(text)) for part in streamed for begin in part] == found["text_offset"]
    assert without


def test_of_tokens_with_one_text_the_likeliest_counts(tiny: Client, opened: Opened) -> None:
    generator = opened.generator("ort")
    tokenizer = load_tokenizer(opened.make("ort"))
    ((want,),) = generator.generate([tokenizer.encode("abc")], max_new_tokens=3, logprobs=30)
    choice = tiny.good(TEXT, prompt="abc", max_tokens=3, logprobs=30)["choices"][0]
    assert want.top_logprobs is not None
    for got, likeliest in zip(choice["logprobs"]["top_logprobs"], want.top_logprobs, strict=True):
        parts = [logprob for id_, logprob in likeliest if tokenizer.decode([id_]) == "\ufffd"]
        assert len(parts) > 1 and got["\ufffd"] == pytest.approx(max(parts), abs=1e-5)
        assert list(got.values()) == sorted(got.values(), reverse=True)


def test_bytes_of_a_chats_tokens_are_those_of_its_text(tiny: Client) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "abc"}], "temperature": 1.5, "seed": 1}
    choice = tiny.good(CHAT, **asked, max_tokens=60, logprobs=True, top_logprobs=2)["choices"][0]
    tokens = [one for one in choice["logprobs"]["content"] if one["token"] not in SPECIAL]
    assert "\ufffd" in [one["token"] for one in tokens]
    joined = b"".join(bytes(one["bytes"]) for one in tokens)
    assert joined.decode("utf-8", "replace") == choice["message"]["content"]


@pytest.mark.parametrize(
    ("token", "piece", "found"),
    [("<0xE2>", "\ufffd", b"\xe2"), ("Ã", "\ufffd", b"\xc3"), ("\ufffd", "\ufffd", None), ("▁\ufffd", " \ufffd", None)],
)
def test_bytes_of_parts_of_characters(token: str, piece: str, found: bytes | None) -> None:
    assert forms._bytes_of(token, piece) == found


def test_refusals_have_the_words_of_the_request(
    service: Served, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, talk = service.client, [{"role": "user", "content": "river"}]
    error = client.refused(400, CHAT, model="lm", messages=talk, logprobs=True, top_logprobs=101)
    assert error["message"].startswith("top_logprobs is 101") and error["param"] == "top_logprobs"
    error = client.refused(400, TEXT, model="lm", prompt="a", logprobs=101)
    assert error["message"].startswith("logprobs is 101") and error["param"] == "logprobs"
    error = client.refused(400, TEXT, model="lm", prompt="a", stop=["</s>!"])
    assert error["message"].startswith("stop: ") and error["param"] == "stop"
    plain = client.good(TEXT, model="lm", prompt="a", max_tokens=3)["choices"]
    assert client.good(TEXT, model="lm", prompt="a", max_tokens=3, seed=4)["choices"] == plain
    monkeypatch.setattr(ChatTemplate, "from_folder", lambda *_: None)
    with served({"bare": opened.make("ort")}) as bare:
        error = bare.client.refused(400, CHAT, messages=talk)
        assert "bare has no chat template" in error["message"] and TEXT in error["message"]
