"""Matrix products and convolutions tuned for one kind of device.

In and out: tensors. Each kernel has a plain PyTorch equivalent that its test compares it with.
"""
