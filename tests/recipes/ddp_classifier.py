"""The usual DDP image classifier, as torchrun starts it. What shardload replaces stands in comments above its lines."""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import shardload


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(torch.relu(self.conv(images)).mean((2, 3)))


def augment(sample, rng):
    image = sample["image"].astype(np.float32) / 255
    return {"image": image[:, :, ::-1].copy() if rng.random() < 0.5 else image, "label": sample["label"]}


def main(data, checkpoint, epochs=4):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(Net())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    # dataset = torchvision.datasets.ImageFolder(data, transform=augment)
    # sampler = DistributedSampler(dataset)
    # loader = DataLoader(dataset, batch_size=16, sampler=sampler, num_workers=8, pin_memory=True, drop_last=True)
    dataset = shardload.open(data, transform=augment)
    loader = shardload.ShardLoader(dataset, batch_size=16, shuffle=True)
    first = 0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"]
        loader.load_state_dict(saved["loader"])  # new: and saved below
    for epoch in range(first, epochs):
        # sampler.set_epoch(epoch)
        loader.set_epoch(epoch)
        correct = torch.zeros(2)
        # for images, labels in loader:
        for batch in loader:
            images, labels = batch["image"], batch["label"]
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct += torch.tensor([(logits.argmax(1) == labels).sum().item(), len(labels)])
        dist.all_reduce(correct)
        if dist.get_rank() == 0:
            parts = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save({**parts, "loader": loader.state_dict()}, checkpoint)
            print(f"epoch {epoch} accuracy {correct[0] / correct[1]:.2f} of {int(correct[1])}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
