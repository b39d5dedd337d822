"""A campaign of faults: kinds of fault, drivers that meet them, and what was lost or wrong.

In: a folder of audio. Out: kinds × tries × reported × lost × wrong. `campaign.py` has the checks.
"""
