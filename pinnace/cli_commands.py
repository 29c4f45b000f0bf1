"""COMMANDS: every command of ``pinnace``, its arguments and flags. A new command is a new row."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Final

from pinnace.cli_bench_flags import as_counts, as_lengths, as_pairs, as_seconds, as_words
from pinnace.cli_flags import Command, Flag, Positional, as_count, as_number, as_path, as_share, as_sizes
from pinnace.cli_inputs import LINES
from pinnace.spec import AUTO, GRAPH_NAMES, PRECISIONS, TARGETS

EXPORT_PRECISIONS: Final = ("fp32", "fp16", "int8", "int4")
LAYOUTS: Final = tuple(GRAPH_NAMES)
QUANTIZED_PRECISIONS: Final = ("int8", "int4", "fp16")
SCHEME_NAMES: Final = (
    "int8", "int8-token", "int8-uncalibrated", "int8-qdq", "int8-qdq-signed", "int8-weights",
    "int4", "int4-uncalibrated", "int4-nearest", "fp16",
)  # fmt: skip
CALIBRATIONS: Final = ("min-max", "moving-average", "entropy", "percentile")

_BUNDLE: Final = Positional("BUNDLE", "the folder that export wrote")
_DEVICE: Final = Flag("device", "where to run: cpu (the default), cuda or cuda:N; that one, or an error", "DEVICE")
_THREADS: Final = Flag("threads", "threads of one run; by default what this process is granted", "N", convert=as_count)

_ROWS: Final = (
    Command(
        "export",
        "Make a verified bundle of a checkpoint. Needs the export extra (PyTorch).",
        "pinnace.cli_export:run",
        (Positional("MODEL", "a folder, a Hub id, or a catalog name such as bert"),),
        (
            Flag("task", "what the model is for, such as qa; by default what the checkpoint was saved for", "TASK"),
            Flag("output", "the bundle's folder; by default MODEL-TASK in this folder", "OUT", "o", convert=as_path),
            Flag("precision", "fp32 (the default), or another beside it", choices=EXPORT_PRECISIONS),
            Flag("target", "ort: fused operators of ONNX Runtime (the default); onnx: standard ones", choices=TARGETS),
            Flag("opset", "version of the standard operators", "N", convert=as_count),
            Flag("static", "fixed sizes for accelerators, such as batch=1,sequence=128, or capacity=1024 of a cache",
                 "SIZES", convert=as_sizes),
            Flag("hidden-states", "also give every layer's output"),
            Flag("attentions", "also give every layer's attention weights"),
            Flag("all-logits", "a causal model's logits for every position: for scores and prompt_lookup_num_tokens"),
            Flag("random-weights", "no checkpoint: random weights in the configured shape, for work on latency"),
            Flag("config", "changes of the configuration, such as num_hidden_layers=2", "K=V,..."),
            Flag("labels", "names of a classifier's labels in order: a,b,c or @FILE with one a line", "LABELS"),
            Flag("init-missing", "give weights that the checkpoint lacks random numbers, rather than fail"),
            Flag("allow-pickle", "read a pickle checkpoint where there are no safetensors; only of a source you trust"),
            Flag("layout", "flat, or hub: graphs in onnx/, as transformers.js reads them", choices=LAYOUTS),
            Flag("data", "for int8 and int4, examples; by default texts that come with Pinnace", "FILE",
                 convert=as_path),
            Flag("allow-degraded", "write an int8 or int4 variant that misses its gate; the manifest says so"),
            Flag("no-validate", "do not compare with PyTorch; the certificate says so"),
            Flag("revision", "branch, tag or commit on the Hub", "REV"),
            Flag("cache-dir", "cache folder of the Hub's files", "DIR", convert=as_path),
            Flag("local-files-only", "take the Hub's files from the cache alone"),
            Flag("subfolder", "folder inside the repository or folder", "DIR"),
        ),
        (
            "pinnace export bert --task qa",
            "pinnace export ./my-bert --task ner -o my-ner --precision int8 --data sentences.jsonl",
            "pinnace export bert --task classify --random-weights --config num_hidden_layers=2",
        ),
    ),
    Command(
        "quantize",
        "Add a smaller, faster variant to a bundle, judged on data and timed on this machine. Needs the export extra.",
        "pinnace.cli_quantize:run",
        (_BUNDLE,),
        (
            Flag("precision", "int8 (the default), int4, or fp16 for GPUs", choices=QUANTIZED_PRECISIONS),
            Flag("scheme", f"in place of the usual one: {', '.join(SCHEME_NAMES)}", choices=SCHEME_NAMES),
            Flag("auto", "try schemes, keep the fastest that passes, or fp32 where none is better"),
            Flag("max-drop", "largest loss of the task's metric, such as 1%; by default the precision's gate", "SHARE",
                 convert=as_share),
            Flag("min-speedup", "with --auto, least speed-up over fp32; 1.2 by default", "RATIO", convert=as_number),
            Flag("data", "examples: text, JSON lines or SQuAD's JSON; by default texts that come with Pinnace", "FILE",
                 convert=as_path),
            Flag("keep", "weights that stay as they are, a shell pattern; give it once for each", "PATTERN",
                 repeated=True),
            Flag("only", "weights that alone may change, a shell pattern; give it once for each", "PATTERN",
                 repeated=True),
            Flag("block", "inputs that share a scale, where weights are in blocks", "N", convert=as_count),
            Flag("full-range", "eight-bit weights in integer products, for processors with exact int8 sums only"),
            Flag("calibration", f"ranges of the int8-qdq schemes: {', '.join(CALIBRATIONS)}; by default the first",
                 choices=CALIBRATIONS),
            Flag("allow-degraded", "write a variant that misses its gate; the manifest says so"),
            Flag("no-judge", "with --allow-degraded: neither judge nor time, for models too large to run here"),
            _THREADS,
            Flag("output", "another folder for the bundle; by default it is replaced", "OUT", "o", convert=as_path),
            Flag("report", "write everything that was measured here, as JSON", "FILE", convert=as_path),
        ),
        (
            "pinnace quantize bert-qa --precision int8",
            "pinnace quantize bert-qa --auto --max-drop 1% --min-speedup 1.2",
            "pinnace quantize apertus --precision int4 --data entries.txt",
        ),
    ),
    Command(
        "run",
        "Answer with a bundle: text, a file of lines or standard input in, JSON out. Needs no PyTorch.",
        "pinnace.cli_run:run",
        (_BUNDLE, Positional("TEXT", "the text, question, query or prompt; - reads lines", required=False)),
        (
            Flag("task", "another task that the same head serves; by default the bundle's own", "TASK"),
            Flag("input", "one input a line: JSON (a string or an object of fields) or text; - is standard input",
                 "FILE", "i", convert=as_path),
            Flag("output", "write the answers here, whole or not at all", "FILE", "o", convert=as_path),
            Flag("resume", "go on behind the answers that an interrupted run of the same command has written"),
            Flag("lines", "what lines are; auto goes by the file's ending, else by the first line", choices=LINES),
            Flag("question", "the question, in place of TEXT", "TEXT"),
            Flag("context", "the text that holds the answer", "TEXT"),
            Flag("text-pair", "the second text of a pair", "TEXT"),
            Flag("query", "the query, in place of TEXT", "TEXT"),
            Flag("document", "a text to rank; give it once for each", "TEXT", repeated=True),
            Flag("prompt", "the prompt, in place of TEXT", "TEXT"),
            Flag("choice", "a text to choose from; give it once for each", "TEXT", repeated=True),
            Flag("candidate-labels", "labels of zero-shot classification: a,b,c or @FILE with one a line", "LABELS"),
            Flag("option", "an option of the pipeline's call, such as top_k=3; give it once for each", "K=V",
                 repeated=True),
            Flag("precision", "which variant; by default fp32; auto: the best verified one for this machine",
                 choices=(*PRECISIONS, AUTO)),
            _DEVICE,
            _THREADS,
            Flag("replicas", "batches that run at once; by default one a thread for lines, one for one input", "N",
                 convert=as_count),
            Flag("batch-tokens", "most tokens of a batch; by default what fits the processor's cache", "N",
                 convert=as_count),
            Flag("no-verify", "do not compare the bundle's files with their hashes"),
        ),
        (
            'pinnace run bert-qa "Who wrote it?" --context "Ada wrote it in 1843."',
            "pinnace run bert-qa --input questions.jsonl --output answers.jsonl",
            'echo "I like it." | pinnace run bert-classify --option top_k=2',
        ),
    ),
    Command(
        "inspect",
        "Show what a bundle is made of: inputs, outputs, operators by layer, sizes.",
        "pinnace.cli_bundles:inspect",
        (_BUNDLE,),
        (),
        ("pinnace inspect bert-qa",),
    ),
    Command(
        "verify",
        "Check a bundle on this machine: hashes, graphs, certificate, and the numbers it gives here.",
        "pinnace.cli_bundles:verify",
        (_BUNDLE,),
        (
            Flag("precision", "whose numbers; by default those of all variants", "NAME,...", convert=as_words),
            _DEVICE, _THREADS, Flag("strict", "fail where numbers were never compared with PyTorch (--no-validate)"),
        ),
        ("pinnace verify bert-qa", "pinnace verify bert-qa --device cuda --precision fp16"),
    ),
    Command(
        "bench",
        "Measure a bundle here: latency, throughput, memory, and how near they come to what the machine can do.",
        "pinnace.cli_bench:run",
        (Positional("BUNDLE", "the folder that export wrote", required=False),),
        (
            Flag("random-weights", "no bundle: export bert or apertus with random weights. Needs the export extra",
                 "ARCH"),
            Flag("config", "with --random-weights: its shape, such as num_hidden_layers=2", "K=V,..."),
            Flag("task", "with --random-weights: what it is exported for", "TASK"),
            Flag("scenario", "of single-stream (the default), offline and server", "NAME,...", convert=as_words),
            Flag("precision", "which variants; by default all that the bundle has", "NAME,...", convert=as_words),
            Flag("device", "where to run; cpu by default", "NAME,...", convert=as_words),
            Flag("threads", "threads of one run; by default what this process is granted", "N,...", convert=as_counts),
            Flag("batch", "rows of a query; 1 by default", "N,...", convert=as_counts),
            Flag("length", "tokens of a row (128 by default), or mixed: 300 texts of unlike length", "N,...|mixed",
                 convert=as_lengths),
            Flag("prompt", "tokens of a decoder's prompt; 128 by default", "N,...", convert=as_counts),
            Flag("output-tokens", "new tokens behind the prompt; 32 by default", "N,...", convert=as_counts),
            Flag("concurrency", "queries at work at once; 1 by default", "N,...", convert=as_counts),
            Flag("input", "inputs of your own, one a line, as pinnace run takes them", "FILE", "i", convert=as_path),
            Flag("latency-bound", "of the server scenario: the time that answers must keep", "TIME",
                 convert=as_seconds),
            Flag("percentile", "share of the answers that must keep it; 99% by default", "SHARE", convert=as_share),
            Flag("rounds", "rounds in which all take turns; 20 by default", "N", convert=as_count),
            Flag("starts", "fresh processes of each; 5 by default", "N", convert=as_count),
            Flag("round-seconds", "time of each in a round; 0.5s by default", "TIME", convert=as_seconds),
            Flag("seed", "of inputs and arrivals; 0 by default", "N", convert=as_count),
            Flag("against", "another bundle, measured in the same rounds and compared", "BUNDLE", convert=as_path),
            Flag("fail-above", "with --against: exit with 1 where it is worse by more", "SHARE", convert=as_share),
            Flag("peers", "other programs with the Python of their environment: transformers=PYTHON,...",
                 "NAME=PYTHON,...", convert=as_pairs),
            Flag("peer-model", "a model for a peer in place of the bundle: llama.cpp=FILE.gguf", "NAME=PATH,...",
                 convert=as_pairs),
            Flag("output", "write everything as JSON; pinnace compare reads it", "FILE", "o", convert=as_path),
            Flag("csv", "write one line for each measure", "FILE", convert=as_path),
            Flag("markdown", "write the tables", "FILE", convert=as_path),
            Flag("html", "write a report with plots: one file that loads nothing", "FILE", convert=as_path),
            Flag("png", "write the plots as a picture. Needs the report extra", "FILE", convert=as_path),
        ),
        (
            "pinnace bench bert-qa",
            "pinnace bench bert-qa --precision fp32,int8 --threads 1,2 --batch 1,8 --output results.json",
            "pinnace bench my-embed --scenario offline --length mixed --peers transformers=peers/bin/python",
            "pinnace bench bert-qa --scenario server --latency-bound 100ms",
        ),
    ),
    Command(
        "compare",
        "Compare two results of bench: faster, slower or no difference, with the confidence.",
        "pinnace.cli_bench:compare",
        (Positional("BEFORE", "a file that bench --output wrote"), Positional("AFTER", "another one")),
        (
            Flag("fail-above", "exit with 1 where a measure is worse by more, such as 5%", "SHARE", convert=as_share),
            Flag("force", "compare runs of unlike machines, threads, tasks, scenarios or lengths too"),
        ),
        ("pinnace compare before.json after.json --fail-above 5%",),
    ),
    Command(
        "profile",
        "Show where the time goes: by layer of the model, by part, by operator, beside what the machine can do.",
        "pinnace.cli_profile:run",
        (_BUNDLE,),
        (
            Flag("precision", "which variant; by default fp32", choices=PRECISIONS),
            Flag("batch", "rows; 1 by default", "N", convert=as_count),
            Flag("length", "tokens of a row of an encoder; 128 by default", "N", convert=as_count),
            Flag("prompt", "tokens of a decoder's prompt; 128 by default", "N", convert=as_count),
            Flag("decode-steps", "tokens that a decoder adds, one at a time; 32 by default", "N", convert=as_count),
            Flag("runs", "runs to measure; by default as many as four seconds take", "N", convert=as_count),
            _THREADS,
            Flag("html", "write a report with plots: one file that loads nothing", "FILE", convert=as_path),
            Flag("png", "write the plots as a picture. Needs the report extra", "FILE", convert=as_path),
        ),
        (
            "pinnace profile bert-qa",
            "pinnace profile bert-qa --batch 8 --length 384 --html profile.html",
            "pinnace profile apertus --prompt 512 --decode-steps 64",
        ),
    ),
    Command(
        "tasks",
        "List the tasks: their other names, heads, documented checkpoints and inputs.",
        "pinnace.cli_machine:tasks",
        examples=("pinnace tasks", "pinnace tasks --json"),
    ),
    Command(
        "doctor",
        "Look for what helps or harms on this machine: processor, quota, providers, versions and their hazards.",
        "pinnace.cli_machine:doctor",
        examples=("pinnace doctor",),
    ),
)  # fmt: skip
COMMANDS: Final[Mapping[str, Command]] = types.MappingProxyType({row.name: row for row in _ROWS})
