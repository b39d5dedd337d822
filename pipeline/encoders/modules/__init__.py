"""Encoders made of any torch module: layers are the outputs of named submodules, taken by hooks.

In: a factory of a module, from `register_encoder` or `model.target`. Out: an encoder like others.
Code runs only if the program has registered it, or the user has allowed it for this run; what a
store, a sweep or a dataset names is never imported.
"""
