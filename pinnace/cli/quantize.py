"""``pinnace quantize``: a smaller and faster variant beside fp32, judged on data and timed on this machine."""

from __future__ import annotations

import json
from types import SimpleNamespace

from pinnace.bench.report.files import check_places, write_whole
from pinnace.cli.flags import shown_path
from pinnace.cli.output import Console
from pinnace.cli.progress import stages


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Quantize a bundle; 0 also where nothing was better than fp32, 1 where the scheme misses its gate."""
    from pinnace.quantize import quantize

    check_places({"report": arguments.report})
    report = quantize(
        arguments.bundle,
        precision=arguments.precision,
        scheme=arguments.scheme,
        auto=bool(arguments.auto),
        max_drop=arguments.max_drop,
        min_speedup=arguments.min_speedup,
        data=arguments.data,
        keep=arguments.keep or (),
        only=arguments.only or (),
        block=arguments.block,
        full_range=arguments.full_range or None,
        calibration=arguments.calibration,
        allow_degraded=bool(arguments.allow_degraded),
        judge=not arguments.no_judge,
        new_tokens=arguments.new_tokens,
        threads=arguments.threads,
        output=arguments.output,
        progress=stages(console),
    )
    try:
        if console.json:
            console.result_json({**report.to_dict(), "seconds": round(console.seconds, 3)})
        else:
            for line in report.lines():
                console.result(line)
    finally:  # whoever reads the result may have read enough, and the file is written nevertheless
        if arguments.report is not None:
            write_whole(arguments.report, json.dumps(report.to_dict(), indent=2) + "\n")
    folder = shown_path(report.path)
    if report.chosen is None:
        console.next(f"pinnace inspect {folder}")
    else:
        console.next(f"pinnace verify {folder}")
    return 0
