"""What a service is told at its start: where it listens, what it opens, and how much it takes on."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one service.

    Attributes:
        host: the address to listen on.
        port: its port; 0 takes a free one.
        precision: the variant of every bundle, as for `pipeline`.
        device: where all run, as for `pipeline`.
        threads: threads of one model's runs, as for `pipeline`.
        replicas: batches of one model that run at once, as for `pipeline`.
        verify: compare the bundles' files with their hashes.
        max_concurrent: most requests of one model at work, waiting or being sent their answer; more are told to come
            back later.
        slots: most rows of one model that generate together.
        timeout: most seconds for a request, from the end of its headers until the last of its answer is handed to the
            network.
        grace: seconds that requests under way get to finish when the service is asked to end.
        max_request_bytes: largest body of a request.
        api_key: what clients must send as ``Authorization: Bearer KEY``; None for nothing.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    precision: str | None = None
    device: str = "cpu"
    threads: int | None = None
    replicas: int = 1
    verify: bool = True
    max_concurrent: int = 64
    slots: int = 16
    timeout: float = 300.0
    grace: float = 20.0
    max_request_bytes: int = 8 << 20
    api_key: str | None = dataclasses.field(default=None, repr=False)
