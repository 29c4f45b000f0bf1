"""Requests at work together in a service: results as alone, and none that is hurt by another's end, error or delay."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pinnace.errors import BundleError, DeadlineExceeded, InputError, MachineError
from pinnace.runtime.generation import Generator
from pinnace.runtime.pipelines import pipeline
from pinnace.runtime.server.batcher import Batcher
from pinnace.runtime.server.scheduler import Scheduler
from pinnace.runtime.server.slot_generator import SlotGenerator
from pinnace.runtime.server.work import Call
from pinnace.runtime.slots import Slots
from tests.conftest import same
from tests.generation_bundles import LENGTH, MakeBundle, Opened, decoder_of, opened, prompts
from tests.serving import PATIENCE, Served, served, with_words
from tests.test_generation_limits import endless_bundle, poisoned
from tests.test_serve import TEXT, Start, start
from tests.test_session import endless
from tests.tiny_bundle import make_bundle

__all__ = ["decoder_of", "endless_bundle", "opened", "start"]

TEXTS = [
    "river (noun):", "glass (noun): a brittle", "slowly (adv):", "falcon (noun):", "boat", "a", "ship (noun):",
    "pier (noun): a platform", "the word galley means a ship that is moved by", "to run:", "Example:", "oar",
]  # fmt: skip
ON: dict[str, Any] = {"logit_bias": {"2": -1000}}  # no end token
WORDS = ["a", "b", "loop"]
VECTORS = "/v1/pipelines/slow"


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


def test_a_stream_whose_time_is_over_ends_with_an_error(
    decoder_of: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Slots.step

    def slow(self: Slots) -> Iterator[Any]:
        time.sleep(0.02)
        return step(self)

    with served({"lm": decoder_of("apertus-ort")}, timeout=2.0) as made:
        monkeypatch.setattr(Slots, "step", slow)
        events = made.client.events(TEXT, prompt="a", max_tokens=1900, **ON)
        assert events[-1]["error"]["code"] == "timeout" and len(events) > 1  # and no [DONE]
        assert made.client.refused(504, TEXT, prompt="a", max_tokens=1900, **ON)["code"] == "timeout"
        made.client.wait(lambda: made.client.metric("pinnace_running_rows") == 0)
        assert made.client.good(TEXT, prompt="a", max_tokens=1)


@pytest.fixture
def runaway(endless_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    """A decoder and an encoder that never answer ``loop``."""
    encoder = make_bundle(tmp_path / "slow", change_graph=endless, golden=False)
    return {"lm": with_words(endless_bundle, WORDS), "slow": with_words(encoder, WORDS)}


def test_endless_runs_are_stopped_and_the_next_request_is_answered(runaway: dict[str, Path]) -> None:
    with served(runaway, timeout=2.0) as made:
        client = made.client
        loop = {"model": "lm", "prompt": [2], "max_tokens": 4}
        asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            (TEXT, loop, {**loop, "prompt": [0]}),
            ("/v1/pipelines/slow", {"inputs": "loop"}, {"inputs": "a a"}),
        ]
        for path, bad, good in asked:
            want = client.good(path, **good)
            assert client.refused(504, path, **bad)["message"].startswith("the request was stopped after 2 s")
            with client.begin(path, **bad):
                client.wait(lambda: client.metric("pinnace_running_rows") == 1)
            client.wait(lambda: client.metric("pinnace_requests_in_flight") == 0)
            got = client.good(path, **good)
            assert got.get("choices") == want.get("choices") if isinstance(got, dict) else got == want


def test_more_requests_than_may_be_are_sent_away(runaway: dict[str, Path]) -> None:
    with served(runaway, max_concurrent=2) as made:
        client = made.client
        with client.begin(VECTORS, inputs="loop"), client.begin(VECTORS, inputs="loop"):
            client.wait(lambda: client.metric("pinnace_requests_in_flight", model="slow") == 2)
            status, headers, answer = client.request("POST", VECTORS, {"inputs": "a"})
            assert (status, headers["retry-after"]) == (429, "1")
            assert json.loads(answer)["error"]["type"] == "rate_limit_error"
            assert client.good(TEXT, model="lm", prompt=[0], max_tokens=1)  # another model has its own queue
        client.wait(lambda: client.metric("pinnace_requests_in_flight", model="slow") == 0)
        assert client.good(VECTORS, inputs="a")


def test_the_end_does_not_wait_for_what_does_not_end(start: Start, runaway: dict[str, Path]) -> None:
    child, client = start(*map(str, runaway.values()), "--grace", "300ms")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(client.post(VECTORS, inputs="loop")))
    asking.start()
    client.wait(lambda: client.metric("pinnace_running_rows") == 1)
    child.send_signal(signal.SIGTERM)
    asking.join(PATIENCE)
    assert answers[0][0] == 503 and answers[0][1]["error"]["code"] == "ending"
    child.communicate(timeout=PATIENCE)
    assert child.returncode == 0


def test_a_model_without_numbers_fails_the_request_alone(tmp_path: Path) -> None:
    with served({"lm": with_words(poisoned(tmp_path / "b", at=2), WORDS)}) as made:
        client = made.client
        want = client.good(TEXT, prompt=[[0]], max_tokens=4)["choices"]
        error = client.refused(500, TEXT, prompt=[[0], [2]], max_tokens=4)
        assert (error["code"], error["type"]) == ("numerical_error", "server_error")
        assert str(tmp_path) not in error["message"]
        assert client.metric("pinnace_numerical_errors_total", model="lm") == 1
        *_, last = client.events(TEXT, prompt=[[0], [2]], max_tokens=4)
        assert last["error"]["code"] == "numerical_error"
        assert client.refused(500, "/v1/pipelines/lm", inputs="loop")["code"] == "numerical_error"
        assert client.metric("pinnace_numerical_errors_total", model="lm") == 3 == len(made.faults)
        assert client.good(TEXT, prompt=[[0]], max_tokens=4)["choices"] == want


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MachineError("no memory"), 503, "machine"),
        (BundleError("/secret"), 500, "internal_error"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
def test_what_goes_wrong_inside(
    service: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    def fail(self: Slots) -> Iterator[Any]:
        raise error

    before = len(service.faults)
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "step", fail)
        got = service.client.refused(status, TEXT, model="lm", prompt="a", max_tokens=4)
    assert got["code"] == code and "secret" not in got["message"]
    assert len(service.faults) - before == (status == 500)
    del service.faults[before:]
    assert service.client.good(TEXT, model="lm", prompt="a", max_tokens=4)


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


def test_rows_wait_where_the_memory_is_short(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, widths: list[int]
) -> None:
    alone, together = shared(opened, "ort")
    rows = prompts(5, 6, 7, 8)
    want = [alone.generate([row], max_new_tokens=30)[0][0].ids.tolist() for row in rows]
    decoder, check = alone.decoder, alone.decoder.check_memory

    def small(count: int, tokens: int) -> None:
        if count > 2:
            raise InputError("room for two")
        check(count, tokens)

    monkeypatch.setattr(decoder, "check_memory", small)
    del widths[:]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(together.generate, [row], max_new_tokens=30) for row in rows]
        assert [one.result()[0][0].ids.tolist() for one in asked] == want
    assert max(widths) == 2


class Gate:
    """Holds a pipeline's first call until it is opened, and counts the inputs of each."""

    def __init__(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.reached, self.opened = threading.Event(), threading.Event()
        answer = type(pipe).answer

        def watched(given: Any, items: Any, options: Any) -> Any:
            self.sizes.append(len(items))
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            options.seconds_left()
            return answer(given, items, options)

        monkeypatch.setattr(type(pipe), "answer", watched)


def behind(batcher: Batcher, count: int) -> None:
    while batcher.waiting < count:
        time.sleep(0.005)


def test_what_waits_is_answered_together_and_as_alone(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline("fill-mask", bundle_of("tiny-mlm"), threads=1)
    texts = [f"the {'plant ' * i}[MASK]" for i in range(6)]
    want = [pipe(text) for text in texts]
    two = pipe(texts[0], top_k=2)
    gate, batcher = Gate(pipe, monkeypatch), Batcher(pipe)

    def ask(call: Call, *given: str, **options: Any) -> list[Any]:
        return batcher.answer(call, [pipe.check_input(one, "the input") for one in given], pipe._read_options(options))

    calls = [Call() for _ in range(9)]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, calls[0], texts[0])
        assert gate.reached.wait(PATIENCE)
        asked: list[tuple[list[str], dict[str, Any]]] = [
            ([texts[1]], {}), (texts[2:4], {}), ([texts[0]], {"top_k": 2}), (["no place"], {}), ([texts[4]], {}),
        ]  # fmt: skip
        rest, come = [], 0
        for call, (given, options) in zip(calls[1:], asked, strict=False):
            rest.append(pool.submit(ask, call, *given, **options))
            behind(batcher, come := come + len(given))
        gone = pool.submit(ask, calls[6], texts[5])
        behind(batcher, come + 1)
        calls[6].cancel()
        with pytest.raises(DeadlineExceeded, match="cancelled"):
            gone.result(PATIENCE)
        gate.opened.set()
        assert same(first.result(PATIENCE), [want[0]])
        assert same(rest[0].result(PATIENCE), [want[1]]) and same(rest[1].result(PATIENCE), want[2:4])
        assert same(rest[2].result(PATIENCE), [two]) and same(rest[4].result(PATIENCE), [want[4]])
        with pytest.raises(InputError, match=r"\[MASK\]") as alone:
            rest[3].result(PATIENCE)
    with pytest.raises(InputError) as said:
        pipe("no place")
    assert str(alone.value) == str(said.value)
    # One; then all with equal options, which fail together and are answered each by itself; then the other options.
    assert gate.sizes[:7] == [1, 5, 1, 2, 1, 1, 1]
    assert batcher.waiting == 0 and calls[1].tokens_in > 0


def test_a_run_ends_when_nobody_waits_for_it(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("embed", bundle_of("tiny-embed"), threads=1)
    want = pipe("good")
    gate, batcher = Gate(pipe, monkeypatch), Batcher(pipe)
    calls = [Call() for _ in range(4)]
    options = pipe._read_options({})
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(batcher.answer, calls[0], ["first"], options)]
        assert gate.reached.wait(PATIENCE)
        for count in (1, 2):
            asked.append(pool.submit(batcher.answer, calls[count], ["good"], options))
            behind(batcher, count)
        calls[0].cancel()  # the only one of its run
        with pytest.raises(DeadlineExceeded):
            asked[0].result(PATIENCE)
        gate.opened.set()
        calls[1].cancel()  # its mate goes on
        with contextlib.suppress(DeadlineExceeded):
            asked[1].result(PATIENCE)
        assert same(asked[2].result(PATIENCE), [want])


def test_one_request_asks_for_so_many_rows(opened: Opened) -> None:
    _, together = shared(opened, "ort")
    client_rows = prompts(*[3] * 20)
    got = together.generate(client_rows, max_new_tokens=2, do_sample=True, seed=1, num_return_sequences=3)
    assert [len(row.ids) for rows in got for row in rows] == [2] * 60
    assert together._call.tokens_in == 60 and together._call.tokens_out == 120
    beams = together.generate(client_rows[:2], max_new_tokens=3, num_beams=2)
    assert together._call.tokens_out == 120 + sum(len(one[0].ids) for one in beams)
    assert LENGTH > 5
