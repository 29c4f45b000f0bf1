"""Which node ran on which provider, read from ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_SUFFIX: Final = "_kernel_time"


class ProfiledNodes:
    """The nodes of a profile, by provider."""

    def __init__(self) -> None:
        self.by_provider: dict[str, list[str]] = {}

    def read(self, path: str | Path) -> None:
        """Read the JSON file that ``InferenceSession.end_profiling`` names."""
        for event in json.loads(Path(path).read_text(encoding="utf-8")):
            name, facts = str(event.get("name", "")), event.get("args", {})
            if event.get("cat") == "Node" and name.endswith(_SUFFIX) and "provider" in facts:
                nodes = self.by_provider.setdefault(str(facts["provider"]), [])
                if (node := name.removesuffix(_SUFFIX)) not in nodes:
                    nodes.append(node)


@contextmanager
def profile_nodes(options: Any) -> Iterator[ProfiledNodes]:
    """Switch the profiler on in session options; what it writes is gone at the end.

    Args:
        options: ``onnxruntime.SessionOptions`` of a session that is opened inside the block.
    """
    with tempfile.TemporaryDirectory(prefix="pinnace-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        yield ProfiledNodes()
