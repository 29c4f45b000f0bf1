"""Keys of ``config.json`` that are no fields: what other programs leave there, and what becomes of each.

Everything a file may hold is either a declared field or stands in one of these tables; any other key is an error.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Final

# Carried along and written again, like transformers does, but without any effect on the model.
KEPT: Final = frozenset(
    {
        # written into every file by transformers 2 to 4
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "is_composition",
        "output_past",
        "prefix",
        "sep_token_id",
        "task_specific_params",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "torchscript",
        "use_bfloat16",
        "xla_device",
        # other special tokens, read from the tokenizer's own files
        "cls_token_id",
        "eos_token_ids",
        "mask_token_id",
        "unk_token_id",
        # encoder or decoder form, where the architecture has only one
        "is_decoder",
        "tie_word_embeddings",
        "use_cache",
        # notes of training scripts and of libraries that wrap the model
        "_num_labels",
        "adapters",
        "base_model",
        "language",
        "license",
        "loss_type",
        "max_seq_length",
        "model_max_length",
        "model_name",
        "name",
        "ner_labels",
        "sbert_ce_default_activation_function",
        "sentence_transformers",
        "transformers.js_config",
        "unsloth_fixed",
        "unsloth_version",
        "vocab_file",
    }
)

# Code, kernels and places to fetch from: data that Pinnace never acts on and does not pass on (THREATS: a file that
# names code must not lead anyone to run it).
NEVER_ACTED_ON: Final = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_auto_class",
        "_commit_hash",
        "_experts_implementation",
        "_experts_implementation_internal",
        "_flash_attn_2_enabled",
        "attn_implementation",
        "auto_map",
        "configuration_files",
        "custom_pipelines",
        "experts_implementation",
        "kernel_config",
        "trust_remote_code",
        "use_kernels",
    }
)

# Options of text generation that transformers 2 to 4 kept here; their place is generation_config.json.
GENERATION: Final = frozenset(
    {
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "penalty_alpha",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "target_lookbehind",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)

# Keys that would change the model in a way that is not supported: only these values, which change nothing, pass.
FIXED: Final[Mapping[str, tuple[Any, ...]]] = types.MappingProxyType(
    {
        "add_cross_attention": (False, None),
        "position_embedding_type": ("absolute", None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
    }
)
# What else is to be said where another value of such a key stands.
FIXED_REMEDIES: Final[Mapping[str, str]] = types.MappingProxyType(
    {"quantization_config": "a checkpoint quantized by another tool cannot be used: start from the original one"}
)
