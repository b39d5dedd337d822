"""Train a linear head with Lightning.

    python examples/lightning_head.py STORE LABEL

LABEL is the column of the classes, and a column `split` says train or test. After `scripts/demo`:

    python examples/lightning_head.py demo/hubert_base-random voice

Needs `pip install lightning`.
"""

from __future__ import annotations

import sys

import lightning
import torch

import pipeline

if len(sys.argv) != 3:
    print("usage: lightning_head.py STORE LABEL", file=sys.stderr)
    sys.exit(2)


class Probe(lightning.LightningModule):
    """A weighted sum of the layers, and a linear head on its mean over frames."""

    def __init__(self, n_layers: int, dim: int, n_classes: int) -> None:
        super().__init__()
        self.featurizer = pipeline.WeightedSum(n_layers)
        self.head = pipeline.PooledLinear(dim, n_classes)

    def training_step(self, batch, _):
        scores = self.head(self.featurizer(batch.features), batch.lengths)
        loss = torch.nn.functional.cross_entropy(scores, batch.columns[label])
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


store, label = pipeline.open_store(sys.argv[1]), sys.argv[2]
train = pipeline.FeatureDataset(store.select(split="train"), classes=[label])
loader = pipeline.make_loader(train, max_frames_per_batch=2_000)
trainer = lightning.Trainer(
    max_epochs=5,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
n_classes = len(train.class_names[label])
trainer.fit(Probe(len(store.layers), store.feature_dim, n_classes), loader)
print(f"loss {trainer.callback_metrics['loss']:.3f}, epochs {trainer.current_epoch}")
