"""Caches, prefixes and their files: rows keep what is theirs, and another model's keys and values are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import BundleError, InputError, MachineError, PinnaceError
from pinnace.runtime.engine.ort import onnxruntime
from pinnace.runtime.generation import kvcache, kvcache_base
from pinnace.runtime.generation.kvcache import make_cache
from pinnace.runtime.generation.kvcache_base import Cache, Store, make_stores
from pinnace.runtime.generation.prefix import Prefix
from pinnace.spec import CacheSpec
from tests.generation_bundles import Opened, decoder_of, opened, prompts, uncached

__all__ = ["decoder_of", "opened"]

Array = np.ndarray[Any, Any]
COUNT = 16
KINDS: dict[str, dict[str, bool]] = {
    "shared": {"in_place": True},
    "fixed": {"in_place": True, "fixed": True},
    "growing": {"in_place": False},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvcache, "BLOCK", 8)
    monkeypatch.setattr(kvcache, "MAX_HOLES", 4)


class DeviceStore(Store):
    """A buffer as on a device: its numbers are seen only through copies."""

    def __init__(self, size: int, dtype: str, device: str, array: Array | None = None) -> None:
        super().__init__(size, dtype, device, array)
        self._array = None
        self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([size], np.dtype(dtype).type, "cpu", 0)
        self._value.update_inplace(np.zeros(size, dtype))
        self.address = self._value.data_ptr()

    def read(self) -> Array:
        return super().read().copy()


def spec(kind: str) -> CacheSpec:
    return CacheSpec(layers=1, heads=2, head_size=2, capacity=100, **KINDS[kind])


def state(length: int, number: float) -> list[Array]:
    key = np.arange(2 * length * 2, dtype=np.float32).reshape(2, length, 2) + np.float32(1000 * number)
    return [key, -key]


def holds(cache: Cache, numbers: list[tuple[int, float]]) -> bool:
    """Whether the rows are those of `state` with these lengths and numbers."""
    assert cache.lengths.tolist() == [length for length, _ in numbers]
    return all(
        np.array_equal(got, want)
        for row, (length, number) in enumerate(numbers)
        for got, want in zip(cache.read(row), state(length, number), strict=True)
    )


@every_kind
@pytest.mark.parametrize("device", [False, True], ids=["cpu", "device"])
def test_rows_enter_leave_move_and_grow(monkeypatch: pytest.MonkeyPatch, kind: str, device: bool) -> None:
    if device:
        monkeypatch.setattr(kvcache_base, "Store", DeviceStore)
    cache = make_cache(spec(kind), "float32", "cpu", 0)
    cache.load([state(3, 1), state(20, 2)])
    cache.load([state(1, 3)])
    assert holds(cache, [(3, 1), (20, 2), (1, 3)])
    cache.reserve(60)
    assert holds(cache, [(3, 1), (20, 2), (1, 3)])
    cache.keep([2, 1, 0])
    assert holds(cache, [(1, 3), (20, 2), (3, 1)])
    cache.keep([2, 2, 0, 1, 1])
    assert holds(cache, [(3, 1), (3, 1), (1, 3), (20, 2), (20, 2)])
    cache.keep([2, 0])
    assert holds(cache, [(1, 3), (3, 1)])
    cache.load([state(70, 4)])
    assert holds(cache, [(1, 3), (3, 1), (70, 4)])
    cache.shorten(2, 50)
    assert cache.lengths.tolist() == [1, 3, 50]
    np.testing.assert_array_equal(cache.read(2)[0], state(70, 4)[0][:, :50])
    np.testing.assert_array_equal(cache.read(2, 7)[1], state(70, 4)[1][:, :7])


@every_kind
def test_the_models_limit_is_named(kind: str) -> None:
    cache = make_cache(spec(kind), "float32", "cpu", 0)
    cache.load([state(90, 1), state(1, 2)])
    cache.reserve(10)
    with pytest.raises(InputError, match=r"101 tokens, the model takes 100"):
        cache.reserve(11)
    assert holds(cache, [(90, 1), (1, 2)])


def test_too_large_buffers_are_an_error_of_the_machine() -> None:
    with pytest.raises(MachineError, match="not enough memory"):
        Store(1 << 60, "float32", "cpu")
    with pytest.raises(MachineError, match="not enough memory for 18,446,744,073,710 MB"):
        make_stores(4, 1 << 60, "float32", "cpu")


@every_kind
def test_rows_that_cannot_move_for_want_of_memory_stay(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    cache = make_cache(spec(kind), "float32", "cpu", 0)
    cache.load([state(20, 1), state(3, 2), state(1, 3)])

    def none_left(*_given: Any, **_options: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, "take" if kind == "growing" else "empty", none_left)
        with pytest.raises(MachineError, match="not enough memory"):
            cache.keep([2, 1])
    assert holds(cache, [(20, 1), (3, 2), (1, 3)])
    cache.keep([2, 1])
    assert holds(cache, [(1, 3), (3, 2)])


def test_a_growing_cache_is_packed_when_it_is_run_and_not_when_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(spec("growing"), "float32", "cpu", 0)
    cache.load([state(20, 1), state(3, 2)])
    with monkeypatch.context() as patch:
        patch.setattr(type(cache), "_pack", lambda *_: pytest.fail("packed"))
        cache.keep([1])
    cache.reserve(1)
    assert cache.mask(np.array([1]), 1).shape == (1, 4) and holds(cache, [(3, 2)])


def test_buffers_of_the_layers_lie_in_one_piece() -> None:
    """So that a small layer's keys lie in the large pages that numpy asks for."""
    stores = make_stores(3, 37, "float32", "cpu")
    assert [store.address - stores[0].address for store in stores] == [0, 256, 512]
    for number, store in enumerate(stores):
        store.read()[:] = number
    assert [store.read().tolist() for store in stores] == [[0] * 37, [1] * 37, [2] * 37]


@pytest.mark.parametrize("name", ["ort", "onnx", "static", "ort-all", "onnx-all", "static-all"])
def test_a_prefix_changes_nothing_but_the_work(opened: Opened, name: str) -> None:
    session = opened.session("ort")
    start = prompts(40)[0]
    # Prompts that go on from the beginning, are it, end within it, leave it half-way, and have nothing of it.
    rows = [np.append(start, [9, 8, 7]), start, start[:30], np.append(start[:20], prompts(6, seed=3)[0]), *prompts(4)]
    generator = opened.generator(name)
    prefix = generator.prefix(start)
    assert [prefix.shared(row, generator.decoder) for row in rows[:4]] == [40, 39, 29, 20]
    want = [uncached(session, row, COUNT) for row in rows]
    options: dict[str, Any] = {"prefix": prefix, "max_new_tokens": COUNT}
    for size in (1, 3, 8):
        assert [one[0].ids.tolist() for one in generator.generate(rows, batch_size=size, **options)] == want
    assert [one[0].ids.tolist() for one in generator.generate(rows, num_beams=2, **options)] == [
        one[0].ids.tolist() for one in generator.generate(rows, num_beams=2, max_new_tokens=COUNT)
    ]
    if name.endswith("all"):
        found = generator.generate(rows, prompt_lookup_num_tokens=3, **options)
        assert [one[0].ids.tolist() for one in found] == want


def test_a_saved_prefix_is_the_same_one(opened: Opened, tmp_path: Path) -> None:
    generator = opened.generator("ort")
    made = generator.prefix(prompts(20)[0])
    made.save(tmp_path / "start.prefix")
    read = generator.load_prefix(tmp_path / "start.prefix")
    assert [path.name for path in tmp_path.iterdir()] == ["start.prefix"]
    assert read.ids.tolist() == made.ids.tolist() and len(read) == 20
    for got, want in zip(read.state(20), made.state(20), strict=True):
        np.testing.assert_array_equal(got, want)
    row = np.append(made.ids, [5])
    found = generator.generate([row], prefix=read, max_new_tokens=COUNT)[0][0]
    assert found.ids.tolist() == uncached(opened.session("ort"), row, COUNT)


def test_another_models_prefix_is_refused(opened: Opened, tmp_path: Path) -> None:
    made = opened.generator("other").prefix(prompts(20)[0])
    made.save(tmp_path / "start.prefix")
    generator = opened.generator("ort")
    with pytest.raises(InputError, match="another model"):
        generator.generate(prompts(5), prefix=made)
    with pytest.raises(InputError, match="another model"):
        Prefix.load(tmp_path / "start.prefix", generator.decoder)


def cut_off(data: bytes) -> bytes:
    return data[:-5]


def longer(data: bytes) -> bytes:
    return data + b"12345"


def one_bit(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


def not_one(_data: bytes) -> bytes:
    return b"PK\x03\x04 an archive"


def _changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def other_format(data: bytes) -> bytes:
    return _changed(data, lambda header: header["__metadata__"].update(format="x"))


def huge(data: bytes) -> bytes:
    return _changed(data, lambda header: header["ids"].update(shape=[2**40]))


def other_shape(data: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        shape = header["state.0"]["shape"]
        header["state.0"]["shape"] = [shape[0] * 2, shape[1], shape[2] // 2]

    return _changed(data, change)


def other_type(data: bytes) -> bytes:
    return _changed(data, lambda header: header["state.0"].update(dtype="I32"))


def renamed(data: bytes) -> bytes:
    return _changed(data, lambda header: header.update({"state.99": header.pop("state.0")}))


def swapped(data: bytes) -> bytes:
    """Key and value of a layer change places."""

    def change(header: dict[str, Any]) -> None:
        header["state.0"], header["state.1"] = header["state.1"], header["state.0"]

    return _changed(data, change)


@pytest.mark.parametrize(
    "damage",
    [cut_off, longer, one_bit, not_one, other_format, huge, other_shape, other_type, renamed, swapped],
)
def test_damaged_files_are_refused_by_name(opened: Opened, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    generator = opened.generator("ort")
    path = tmp_path / "start.prefix"
    generator.prefix(prompts(20)[0]).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=r"start\.prefix"):
        Prefix.load(path, generator.decoder)


def test_files_that_cannot_be_read_or_written(opened: Opened, tmp_path: Path) -> None:
    generator = opened.generator("ort")
    with pytest.raises(BundleError, match="lost"):
        Prefix.load(tmp_path / "lost", generator.decoder)
    made = generator.prefix(prompts(20)[0])
    with pytest.raises(MachineError, match="nothing was changed"):
        made.save(tmp_path / "no" / "folder" / "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(PinnaceError):
        made.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
