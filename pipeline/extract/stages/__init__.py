"""The steps of a worker on one unit: decode, encode, receive, and their timing.

In: the plan's rows of one unit. Out: features in the unit's buffer, with a record per utterance.
"""
