"""Train a frame-wise linear layer with CTC on one layer, and transcribe the test utterances.

    python examples/ctc.py STORE TEXT LAYER

TEXT is the column of the transcripts, and a column `split` says train or test. After
`scripts/demo`:

    python examples/ctc.py demo/hubert_base-random word 9
"""

from __future__ import annotations

import sys
from itertools import groupby

import torch

import pipeline

if len(sys.argv) != 4:
    print("usage: ctc.py STORE TEXT LAYER", file=sys.stderr)
    sys.exit(2)
store = pipeline.open_store(sys.argv[1])
column, layer = sys.argv[2], int(sys.argv[3])
values = store.metadata[column].to_pylist()
names = store.class_names.get(column)  # a column of classes holds numbers; spell their names
texts = dict(zip(store.ids, [names[i] for i in values] if names else values, strict=True))
train, test = store.select(split="train"), store.select(split="test")
letters = sorted(set("".join(texts[name] for name in train.ids)))  # symbol 0 is the blank

torch.manual_seed(0)
head = pipeline.FramewiseLinear(store.feature_dim, 1 + len(letters))
optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
ctc = torch.nn.CTCLoss(blank=0, zero_infinity=True)

loader = pipeline.make_loader(
    pipeline.FeatureDataset(train, layers=[layer]), max_frames_per_batch=1_000
)
for epoch in range(30):
    for batch in loader:  # features [batch, 1, n_frames, dim], lengths [batch]
        scores = head(batch.features[:, 0]).log_softmax(-1)  # [batch, n_frames, n_symbols]
        targets = [[1 + letters.index(letter) for letter in texts[name]] for name in batch.ids]
        symbols = torch.tensor([symbol for target in targets for symbol in target])
        sizes = torch.tensor([len(target) for target in targets])
        loss = ctc(scores.transpose(0, 1), symbols, batch.lengths, sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if epoch % 5 == 0:
        print(f"epoch {epoch}: loss {loss.item():.3f}")


def transcribe(frames: torch.Tensor) -> str:
    """Decode greedily: the best symbol of each frame [n_frames, dim], runs merged, no blanks."""
    best = head(frames).argmax(-1).tolist()
    return "".join(letters[symbol - 1] for symbol, _ in groupby(best) if symbol)


correct = 0
for name in test.ids:
    transcript = transcribe(test.read(name, layers=[layer])[0])
    correct += transcript == texts[name]
    if name in test.ids[:3]:
        print(f"{name}: {texts[name]!r} transcribed as {transcript!r}")
print(f"loss {loss.item():.3f}, {correct} of {len(test)} transcripts without an error")
