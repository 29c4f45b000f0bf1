"""transformers beside our BERT: pairs of models with the same weights, inputs for both, and the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from pinnace.models.registry import ARCHS, head_class

ATOL: Final = 1e-5
SMALL: Final = {
    "vocab_size": 41, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 19, "max_position_embeddings": 24,
}  # fmt: skip
HEADS: Final = tuple(ARCHS["bert"].heads)


def pair(head: str, **settings: Any) -> tuple[Any, Any]:
    """The same random weights in both: (transformers' model, ours), in evaluation mode."""
    arch = ARCHS["bert"]
    settings = {**SMALL, **settings}
    options = {"add_pooling_layer": settings.pop("add_pooling_layer")} if "add_pooling_layer" in settings else {}
    config = transformers.BertConfig(**settings)
    config._attn_implementation = "eager"
    theirs = getattr(transformers, head)(config, **options).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # biases and norms start at 0 and 1, where mistakes would not show
            weight.add_(torch.randn_like(weight) * 0.1)
    ours = head_class(arch, head)(arch.config_class()(**settings), **options).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def text_inputs(
    head: str, batch: int = 3, length: int = 7, *, padding: str = "right", types: int = 2, vocabulary: int = 41
) -> dict[str, Tensor]:
    """Random ids, a mask in which every row but the first is padded, and segments."""
    ids = torch.randint(1, vocabulary, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        mask[row, slice(length - row, None) if padding == "right" else slice(0, row)] = 0
    ids[mask == 0] = 0
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(0, types, (batch, length))}
    if head == "BertForMultipleChoice":
        return {name: torch.stack([tensor, tensor.flip(0)], dim=1) for name, tensor in given.items()}
    return given


def labels_for(head: str, given: Mapping[str, Tensor], labels: int = 2) -> dict[str, Tensor]:
    """Labels that give the head's loss; token labels hold some -100."""
    B, T = given["input_ids"].shape[0], given["input_ids"].shape[-1]
    tokens = torch.randint(0, 41, (B, T))
    tokens[:, ::3] = -100
    spans = {"start_positions": torch.tensor([[1], [0], [T + 5]])[:B], "end_positions": torch.tensor([2, T, 3])[:B]}
    table: dict[str, dict[str, Tensor]] = {
        "BertForPreTraining": {"labels": tokens, "next_sentence_label": torch.randint(0, 2, (B,))},
        "BertForTokenClassification": {"labels": torch.where(tokens < 0, tokens, tokens % labels)},
        "BertForSequenceClassification": {"labels": torch.randint(0, labels, (B,))},
        "BertForNextSentencePrediction": {"labels": torch.randint(0, 2, (B,))},
        "BertForMultipleChoice": {"labels": torch.randint(0, 2, (B,))},
        "BertForQuestionAnswering": spans,
    }
    return table.get(head, {"labels": tokens})


def assert_same(ours: Any, theirs: Any, atol: float = ATOL) -> None:
    """Every output of ours is transformers' output of that name, and none of theirs is left out."""
    # transformers 5.23 gives an empty cross_attentions where there is no cross-attention.
    expected = [name for name, value in theirs.items() if not (name == "cross_attentions" and not value)]
    assert list(ours) == expected
    for name in expected:
        if name == "past_key_values":
            assert ours[name].get_seq_length() == theirs[name].get_seq_length()
        else:
            _assert_close(ours[name], theirs[name], name, atol)


def _assert_close(ours: Any, theirs: Any, name: str, atol: float) -> None:
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")
        return
    assert len(ours) == len(theirs), name
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        _assert_close(one, other, f"{name}[{index}]", atol)
