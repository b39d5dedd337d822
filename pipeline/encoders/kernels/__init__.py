"""Matrix products and activations tuned for one kind of device.

In and out: tensors. A test compares each kernel with its plain PyTorch equivalent.
"""
