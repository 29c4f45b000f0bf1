"""The trained Apertus: the same greedy tokens as transformers', in every way of running it, and no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import UsageError
from pinnace.export.builder import export
from pinnace.runtime.engine.session import load
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.pipelines.table import pipeline
from tests.apertus_oracle import pair
from tests.conftest import DATA
from tests.generation_bundles import Opened, decoder_of, opened

__all__ = ["decoder_of", "opened"]

COUNT = 64
every_form = pytest.mark.parametrize("name", ["apertus-ort", "apertus-onnx", "apertus-static", "apertus-ort-all"])
ALWAYS: dict[str, Any] = {"max_new_tokens": COUNT, "min_new_tokens": COUNT}
Recorded = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    found: Recorded = json.loads((DATA / "lm_greedy.transformers.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def rows(opened: Opened, recorded: Recorded) -> list[Any]:
    """Prompts of different lengths, one of them long and repeating itself."""
    tokenizer = pipeline("generate", opened.make("apertus-ort")).tokenizer
    found = [np.array(tokenizer.encode(text)) for text in recorded]
    return [*found, np.concatenate([found[0], *(one[1:] for one in found * 8)])]


@pytest.fixture(scope="module")
def expected(rows: list[Any]) -> list[list[int]]:
    """What transformers generates from each row alone."""
    import torch
    from transformers import ApertusForCausalLM

    torch.set_num_threads(1)
    model = ApertusForCausalLM.from_pretrained(DATA / "apertus-glossary", dtype=torch.float32).eval()
    options = {"do_sample": False, "pad_token_id": 3, **ALWAYS}
    return [model.generate(torch.tensor(row[None]), **options)[0, len(row) :].tolist() for row in rows]


@every_form
def test_however_the_rows_are_run(opened: Opened, rows: list[Any], expected: list[list[int]], name: str) -> None:
    generator = opened.generator(name)

    def tokens(given: Any = rows, **options: Any) -> list[list[int]]:
        return [one[0].ids.tolist() for one in generator.generate(given, **ALWAYS, **options)]

    assert [tokens([row])[0] for row in rows] == expected
    assert tokens() == expected
    assert tokens(batch_size=3) == expected
    widest = max(map(len, rows))
    array = np.stack([np.pad(row, (widest - len(row), 0), constant_values=3) for row in rows])
    mask = np.stack([np.pad(np.ones_like(row), (widest - len(row), 0)) for row in rows])
    assert tokens(array, attention_mask=mask) == expected
    prefix = generator.prefix(rows[-1][:100])
    assert prefix.shared(rows[-1], generator.decoder) == 100 and prefix.shared(rows[0], generator.decoder) > 2
    assert tokens(prefix=prefix) == expected
    streamed: dict[int, list[int | None]] = {}
    for token in generator.stream(rows, **ALWAYS):
        streamed.setdefault(token.prompt, []).append(token.id)
    assert [streamed[i] for i in range(len(rows))] == expected
    if generator.decoder.every_position:
        assert tokens(prompt_lookup_num_tokens=6) == expected


@every_form
def test_texts_are_those_that_transformers_wrote(opened: Opened, recorded: Recorded, name: str) -> None:
    pipe: Any = pipeline("generate", opened.make(name), threads=1)
    found = pipe(list(recorded), max_new_tokens=48)
    assert [one[0]["generated_text"] for one in found] == [one["text"] for one in recorded.values()]
    assert ["".join(pipe.stream(text, max_new_tokens=48)) for text in recorded] == [
        one["text"][len(text) :] for text, one in recorded.items()
    ]


def test_messages_are_answered_by_the_checkpoints_own_template(opened: Opened, recorded: Recorded) -> None:
    pipe = pipeline("generate", opened.make("apertus-ort"), threads=1)
    talk = [{"role": "user", "content": "falcon"}]
    (record,) = pipe(talk, max_new_tokens=16)
    # The template writes "falcon (noun):" without the first token.
    plain = pipe("falcon (noun):", max_new_tokens=16, add_special_tokens=False, return_full_text=False)
    assert record["generated_text"] == [*talk, {"role": "assistant", "content": plain[0]["generated_text"]}]


def test_scores_are_those_of_transformers(opened: Opened, rows: list[Any]) -> None:
    import torch
    from transformers import ApertusForCausalLM

    model = ApertusForCausalLM.from_pretrained(DATA / "apertus-glossary", dtype=torch.float32).eval()
    for name in ("apertus-ort", "apertus-ort-all"):
        for row, found in zip(rows[:3], opened.generator(name).score(rows[:3]), strict=True):
            with torch.inference_mode():
                logs = torch.log_softmax(model(torch.tensor(row[None])).logits[0], -1).numpy()
            np.testing.assert_allclose(found, logs[np.arange(len(row) - 1), row[1:]], atol=1e-4)


def test_no_pytorch_in_the_process(opened: Opened, recorded: Recorded) -> None:
    code = (
        "import sys, pinnace\n"
        "pipe = pinnace.pipeline('text-generation', sys.argv[1], threads=1)\n"
        "print(''.join(pipe.stream('falcon (noun):', max_new_tokens=48)))\n"
        "assert not {'torch', 'onnx', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(opened.make("apertus-ort"))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "falcon (noun):" + done.stdout.rstrip("\n") == recorded["falcon (noun):"]["text"]


def test_a_prompt_whose_keys_turn_by_its_length_is_read_whole(tmp_path: Path) -> None:
    """Dynamic scaling beyond the positions that were trained: in pieces, the first keys would be turned too fast."""
    import torch

    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}
    theirs, _ = pair("ApertusForCausalLM", rope_parameters=rope, max_position_embeddings=16)
    theirs.save_pretrained(tmp_path / "checkpoint")
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", validate=False, all_logits=True)
    generator = Generator(load(made.path, threads=1))
    rows = [np.tile(np.random.default_rng(1).integers(4, 41, 10), 6), np.arange(4, 18)]
    options: dict[str, Any] = {"max_new_tokens": 30, "min_new_tokens": 30}
    with torch.inference_mode():
        given = [torch.from_numpy(row[None]) for row in rows]
        want = [theirs.generate(ids, do_sample=False, pad_token_id=3, **options)[0, ids.shape[1] :] for ids in given]
        logs = theirs(given[0]).logits.log_softmax(-1)[0, range(59), rows[0][1:]]
    generator.decoder.piece = 8
    assert [generator.decoder.splits(len(row)) for row in rows] == [False, True]
    prefix = generator.prefix(rows[0][:8])
    assert [prefix.shared(row, generator.decoder) for row in (rows[0], rows[0][:16])] == [0, 8]
    for one, ids in zip(rows, want, strict=True):
        for more in ({}, {"prefix": prefix}, {"prompt_lookup_num_tokens": 4}):
            assert generator.generate([one], **options, **more)[0][0].ids.tolist() == ids.tolist(), more
    np.testing.assert_allclose(generator.score([rows[0]])[0], logs, rtol=0, atol=2e-5)
    made = export(tmp_path / "checkpoint", output=tmp_path / "last", validate=False)
    stepping = Generator(load(made.path, threads=1))
    with pytest.raises(UsageError, match=r"17 tokens .* above 16 .*--all-logits"):
        stepping.score([rows[0][:17]])
    short = rows[0][:16]
    np.testing.assert_allclose(stepping.score([short])[0], generator.score([short])[0], rtol=0, atol=2e-5)
