"""Train a linear head in several processes with DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/ddp.py STORE LABEL

LABEL is the column of the classes, and a column `split` says train or test. After `scripts/demo`:

    torchrun --nproc-per-node 2 examples/ddp.py demo/hubert_base-random voice
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import pipeline

if len(sys.argv) != 3:
    print("usage: ddp.py STORE LABEL", file=sys.stderr)
    sys.exit(2)
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
store, label = pipeline.open_store(sys.argv[1]), sys.argv[2]
train = pipeline.FeatureDataset(store.select(split="train"), classes=[label])
loader = pipeline.make_loader(train, max_frames_per_batch=1_000, rank=rank, world_size=world_size)

torch.manual_seed(0)
model = DistributedDataParallel(
    torch.nn.Sequential(
        pipeline.WeightedSum(len(store.layers)),
        pipeline.FramewiseLinear(store.feature_dim, len(train.class_names[label])),
    )
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _epoch in range(3):
    for batch in loader:  # every rank gets the same number of batches
        scores = model(batch.features)  # [batch, n_frames, n_classes]
        labels = batch.columns[label][:, None].expand(batch.mask.shape)
        loss = torch.nn.functional.cross_entropy(scores[batch.mask], labels[batch.mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"rank {rank}: {len(loader)} batches, loss {loss.item():.3f}")
dist.barrier()  # a rank that leaves early breaks the last exchange of the others
dist.destroy_process_group()
