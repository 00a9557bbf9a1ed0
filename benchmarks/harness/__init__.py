"""Our models beside timm, transformers, ONNX Runtime and OpenVINO: the same weights, in turn."""
