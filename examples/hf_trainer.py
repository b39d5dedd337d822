"""Train a linear head with the Trainer of Hugging Face transformers.

    python examples/hf_trainer.py STORE LABEL

LABEL is the column of the classes, and a column `split` says train or test. After `scripts/demo`:

    python examples/hf_trainer.py demo/hubert_base-random voice

Needs `pip install transformers accelerate`. Writes nothing but an empty folder `probe`.
"""

from __future__ import annotations

import sys

import torch
import transformers

import pipeline

if len(sys.argv) != 3:
    print("usage: hf_trainer.py STORE LABEL", file=sys.stderr)
    sys.exit(2)


class Probe(torch.nn.Module):
    """A weighted sum of the layers, and a linear head on its mean over frames."""

    def __init__(self, n_layers: int, dim: int, n_classes: int) -> None:
        super().__init__()
        self.featurizer = pipeline.WeightedSum(n_layers)
        self.head = pipeline.PooledLinear(dim, n_classes)

    def forward(self, features, lengths, labels):
        logits = self.head(self.featurizer(features), lengths)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(examples):
    """Make of examples the arguments of `Probe.forward`."""
    batch = pipeline.collate(examples)
    labels = batch.columns[label]
    return {"features": batch.features, "lengths": batch.lengths, "labels": labels}


store, label = pipeline.open_store(sys.argv[1]), sys.argv[2]
train = pipeline.FeatureDataset(store.select(split="train"), classes=[label])
trainer = transformers.Trainer(
    model=Probe(len(store.layers), store.feature_dim, len(train.class_names[label])),
    args=transformers.TrainingArguments(
        output_dir="probe",
        num_train_epochs=5,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    ),
    train_dataset=train,
    data_collator=collate,
)
print(f"loss {trainer.train().training_loss:.3f}")
