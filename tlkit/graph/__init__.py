"""ONNX in, ONNX out: tracing, composing, metadata, quantization. No session is opened here."""
