"""COMMANDS: every command of ``pinnace``, its arguments and flags. A new command is a new row."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Final

from pinnace.cli_flags import Command, Flag, Positional, as_count, as_path, as_sizes
from pinnace.cli_inputs import LINES
from pinnace.spec import PRECISIONS, TARGETS

EXPORT_PRECISIONS: Final = ("fp32", "fp16")
LAYOUTS: Final = ("flat", "hub")

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
            Flag("precision", "fp32 (the default), or fp16 beside it", choices=EXPORT_PRECISIONS),
            Flag("target", "ort: fused operators of ONNX Runtime (the default); onnx: standard ones", choices=TARGETS),
            Flag("opset", "version of the standard operators", "N", convert=as_count),
            Flag("static", "fixed sizes, such as batch=1,sequence=128, for accelerators", "SIZES", convert=as_sizes),
            Flag("hidden-states", "also give every layer's output"),
            Flag("attentions", "also give every layer's attention weights"),
            Flag("all-logits", "a causal model's logits for every position: for scores and prompt_lookup_num_tokens"),
            Flag("random-weights", "no checkpoint: random weights in the configured shape, for work on latency"),
            Flag("config", "changes of the configuration, such as num_hidden_layers=2", "K=V,..."),
            Flag("labels", "names of a classifier's labels in order: a,b,c or @FILE with one a line", "LABELS"),
            Flag("init-missing", "give weights that the checkpoint lacks random numbers, rather than fail"),
            Flag("allow-pickle", "read a pickle checkpoint where there are no safetensors; only of a source you trust"),
            Flag("layout", "flat, or hub: graphs in onnx/, as transformers.js reads them", choices=LAYOUTS),
            Flag("no-validate", "do not compare with PyTorch; the certificate says so"),
            Flag("revision", "branch, tag or commit on the Hub", "REV"),
            Flag("cache-dir", "cache folder of the Hub's files", "DIR", convert=as_path),
            Flag("local-files-only", "take the Hub's files from the cache alone"),
            Flag("subfolder", "folder inside the repository or folder", "DIR"),
        ),
        (
            "pinnace export bert --task qa",
            "pinnace export ./my-bert --task ner -o my-ner --precision fp16",
            "pinnace export bert --task classify --random-weights --config num_hidden_layers=2",
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
            Flag("precision", "which variant; by default fp32", choices=PRECISIONS),
            _DEVICE,
            _THREADS,
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
        (_DEVICE, _THREADS, Flag("strict", "fail where numbers were never compared with PyTorch (--no-validate)")),
        ("pinnace verify bert-qa", "pinnace verify bert-qa --device cuda"),
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
