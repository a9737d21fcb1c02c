"""The deployable file: ONNX graphs, parity against PyTorch, sessions, and colouring a photograph with them."""
