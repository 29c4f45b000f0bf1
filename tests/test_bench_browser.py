"""Reports in a real browser, where there is one: nothing is asked of the network, and nothing is complained of."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pinnace.bench.report import bench as report
from tests.bench_result import HOSTILE, encoder_result, pixels, renamed

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that refuses everything and remembers what it was asked for."""
    asked: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.settimeout(2)
                try:
                    asked.append(client.recv(4096).split(b"\r\n")[0].decode("latin-1"))
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], asked
    finally:
        server.close()


def browse(page: Path, folder: Path, *flags: str) -> tuple[bytes, list[str], str]:
    """Open a page in a headless browser: its screenshot, what it asked the network for, and what it complained of."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    picture = folder / "page.png"
    with proxy() as (port, asked):
        done = subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-default-apps", "--disable-extensions", f"--user-data-dir={folder / 'profile'}",
                f"--proxy-server=127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>", "--enable-logging=stderr",
                "--window-size=1280,2400", f"--screenshot={picture}", *flags, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)}, check=False,
        )  # fmt: skip
    if not picture.exists():
        pytest.skip(f"the browser does not run here: {done.stderr[-300:]}")
    ours = [request for request in asked if ".test" in request]
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return picture.read_bytes(), ours, complaints


def test_a_browser_shows_the_page_without_errors_or_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="reading the screenshot needs it")
    page = tmp_path / "report.html"
    for name in HOSTILE:
        page.write_text(report.render(renamed(encoder_result(), "int8", name)), "utf-8")
    picture, asked, complaints = browse(page, tmp_path)
    assert asked == []
    assert complaints == ""
    colours = pixels(picture)
    assert len(np.unique((colours * 8).astype(int).reshape(-1, 3), axis=0)) > 8
    dark, _, _ = browse(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert pixels(dark).mean() < 0.4 < 0.7 < colours.mean()


def test_the_browser_check_would_find_a_request_and_an_error(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://evil.test/x.png"><script>undefinedFunction()</script>', "utf-8")
    _, asked, complaints = browse(page, tmp_path)
    assert any("evil.test" in request for request in asked)
    assert "undefinedFunction" in complaints
