"""Tensors in, tensors out: ONNX Runtime's sessions, checked inputs, bounded memory, and runs that can be stopped."""
