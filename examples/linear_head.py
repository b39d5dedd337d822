"""Train a linear head on the weighted sum of all layers, in plain PyTorch.

    python examples/linear_head.py STORE LABEL

LABEL is the column of the classes, and a column `split` says train or test. After `scripts/demo`:

    python examples/linear_head.py demo/hubert_base-random voice
"""

from __future__ import annotations

import sys

import torch

import pipeline

if len(sys.argv) != 3:
    print("usage: linear_head.py STORE LABEL", file=sys.stderr)
    sys.exit(2)
store, label = pipeline.open_store(sys.argv[1]), sys.argv[2]
train = pipeline.FeatureDataset(store.select(split="train"), classes=[label])
test = pipeline.FeatureDataset(store.select(split="test"), classes=[label])

torch.manual_seed(0)
featurizer = pipeline.WeightedSum(len(store.layers))
head = pipeline.PooledLinear(store.feature_dim, len(train.class_names[label]))
optimizer = torch.optim.Adam([*featurizer.parameters(), *head.parameters()], lr=1e-2)

loader = pipeline.make_loader(train, max_frames_per_batch=2_000)
for epoch in range(5):
    for batch in loader:  # features [batch, n_layers, n_frames, dim], lengths [batch]
        scores = head(featurizer(batch.features), batch.lengths)
        loss = torch.nn.functional.cross_entropy(scores, batch.columns[label])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.3f}")

correct = 0
with torch.no_grad():
    for batch in pipeline.make_loader(test, max_frames_per_batch=2_000, shuffle=False):
        scores = head(featurizer(batch.features), batch.lengths)
        correct += int((scores.argmax(1) == batch.columns[label]).sum())
print(f"accuracy {correct / len(test):.3f}, weights {featurizer.weights().tolist()}")
