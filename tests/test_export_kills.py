"""A writer that is killed at any moment leaves the old bundle or the new one, whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinnace.runtime.checks.verify import verify_bundle
from pinnace.spec import MANIFEST_NAME
from tests.test_publishing import entries, publish

ROOT = Path(__file__).parent.parent
FILES = 12
# Publishes generation after generation and says so, until it is killed.
CHILD = f"""
import sys
from pathlib import Path
from pinnace.publishing import publishing
target = Path(sys.argv[1])
print("ready", flush=True)
generation = int(sys.argv[2])
while True:
    with publishing(target) as scratch:
        for index in range({FILES}):
            (scratch / f"file{{index}}").write_text(str(generation) * 2000)
        (scratch / "manifest.json").write_text(str(generation))
    generation += 1
"""


def whole(target: Path) -> int | None:
    """The generation that stands at the target; fails where it is torn."""
    if not target.exists():
        return None
    generation = int((target / MANIFEST_NAME).read_text())
    assert len(entries(target)) == FILES + 1
    for index in range(FILES):
        assert (target / f"file{index}").read_text() == str(generation) * 2000
    return generation


def test_fifty_kills_never_leave_half_a_bundle(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    chance = random.Random(5)
    reached = interrupted = 0
    for turn in range(50):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(target), str(reached + 1)], cwd=ROOT, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.random() * 0.08 + (0.1 if turn == 0 else 0))
            child.send_signal(signal.SIGKILL)
        found = whole(target)
        assert (found or 0) >= reached
        reached = found or 0
        interrupted += any(".partial-" in name for name in entries(tmp_path))
    assert reached > 3
    assert interrupted > 10
    publish(target)
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.slow
def test_killed_exports_leave_a_bundle_that_verifies(tmp_path: Path) -> None:
    target, model = tmp_path / "bundle", ROOT / "tests" / "data" / "tiny-classify"
    code = f"""
import pinnace
while True:
    print("ready", flush=True)
    pinnace.export({str(model)!r}, output={str(target)!r}, precision="fp16")
"""
    chance = random.Random(3)
    for turn in range(3):
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(2 if turn == 0 else 1):
                child.stdout.readline()
            # The first seconds go to importing PyTorch.
            time.sleep((0 if turn == 0 else 2.5) + chance.random() * 2)
            child.send_signal(signal.SIGKILL)
        report = verify_bundle(target)
        assert report.ok, report
    publish(target)
    assert entries(tmp_path) == ["bundle"]
