"""``pinnace profile``: where the time of a bundle goes, by layer, by part and by operator."""

from __future__ import annotations

import importlib.util
import shlex
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pinnace.bench.report.files import check_places
from pinnace.cli.output import Console
from pinnace.errors import MissingExtra

if TYPE_CHECKING:
    from pinnace.bench.profile.records import Profile


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Profile a bundle; print a table, and write the report where one is asked for."""
    from pinnace.bench.profile.limits import measure_limits
    from pinnace.bench.profile.run import profile_bundle
    from pinnace.bench.profile.table import render

    check_places({"html": arguments.html, "png": arguments.png})
    if arguments.png and importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("report", "--png")  # said before the work, not after it
    profile = profile_bundle(
        arguments.bundle,
        precision=arguments.precision,
        threads=arguments.threads,
        batch=arguments.batch,
        length=arguments.length,
        prompt=arguments.prompt,
        decode_steps=arguments.decode_steps,
        runs=arguments.runs,
        limits=measure_limits,
        progress=console.stage,
    )
    try:
        if console.json:
            console.result_json(profile.to_dict())
        else:
            console.result(render(profile))
    finally:  # whoever reads the result may have read enough, and the files are written nevertheless
        _write(profile, arguments, console)
    folder = shlex.quote(arguments.bundle)
    if arguments.html:
        console.next(f"pinnace inspect {folder}", "see what the layers are made of")
    else:
        console.next(f"pinnace profile {folder} --html profile.html", "see it as a picture")
    return 0


def _write(profile: Profile, arguments: SimpleNamespace, console: Console) -> None:
    if not (arguments.html or arguments.png):
        return
    from pinnace.bench.report import profile as report_profile

    if arguments.html:
        report_profile.write_html(profile, arguments.html)
        console.log(f"wrote {arguments.html}")
    if arguments.png:
        report_profile.write_png(profile, arguments.png)
        console.log(f"wrote {arguments.png}")
