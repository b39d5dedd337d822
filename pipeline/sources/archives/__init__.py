"""Archives, files that hold the audio of many utterances, read in place by ranges of bytes.

In: configurations of datasets. Out: `Source`.
"""
