"""What is fetched ahead of the batches, where reads wait for a server.

`planning` says which ranges of which objects a portion of an epoch needs, `memory` has the memory
that processes share, `fetching` fills it in the loader's process, and `receiving` finds in it what
a batch is read from.
"""
