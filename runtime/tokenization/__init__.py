"""Texts to token ids and back: BERT's word pieces and byte-level BPE, from a checkpoint's own files."""
