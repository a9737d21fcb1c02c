"""The task and the original model: photographs, colour space, UNet, checkpoint, metrics, and the training loop."""
