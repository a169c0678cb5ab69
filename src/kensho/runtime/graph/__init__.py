"""From a model to ONNX graphs: operations, number formats, where each weight lies."""
