"""Token ids in, token ids out: the decoder and its cache, sampling, beams, slots, speculation, streams."""
