"""Print `pretrained` if HuBERT base's weights exist or can be downloaded, else `random`."""

from __future__ import annotations

import contextlib
import sys

from pipeline.encoders.loading import load_encoder
from pipeline.errors import WeightsError

try:
    with contextlib.redirect_stdout(sys.stderr):  # torch reports its downloads there
        load_encoder("hubert_base", weights="pretrained", device="cpu")
except WeightsError as error:
    print(f"no pretrained weights: {error}", file=sys.stderr)
    print(
        "The demo continues with RANDOM weights: shapes and speed are real, but the features mean\n"
        "nothing. Run it with a network to get real ones.",
        file=sys.stderr,
    )
    print("random")
else:
    print("HuBERT base with its pretrained weights", file=sys.stderr)
    print("pretrained")
