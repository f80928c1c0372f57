"""A small language model trained with get_batch, step by step. What shardload replaces stands in comments above its lines."""

from __future__ import annotations

import itertools
import os
import sys

import torch
from torch import nn

import shardload

block_size, batch_size, eval_interval = 32, 16, 20


class Model(nn.Module):
    def __init__(self, vocabulary=64, width=32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x, y):
        logits = self.head(self.rnn(self.embed(x))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def main(data, out, max_iters):
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # train_data = np.memmap(os.path.join(data, "train.bin"), dtype=np.uint16, mode="r")
    #
    # def get_batch():
    #     ix = torch.randint(len(train_data) - block_size, (batch_size,))
    #     x = torch.stack([torch.from_numpy(train_data[i:i + block_size].astype(np.int64)) for i in ix])
    #     y = torch.stack([torch.from_numpy(train_data[i + 1:i + 1 + block_size].astype(np.int64)) for i in ix])
    #     return x, y
    loader = shardload.ShardLoader(shardload.open(data), batch_size, shuffle=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def get_batch():
        tokens = next(batches)["tokens"]
        return tokens[:, :-1], tokens[:, 1:]

    iter_num, checkpoint = 0, os.path.join(out, "ckpt.pt")
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        iter_num = saved["iter_num"]
        loader.load_state_dict(saved["loader"])  # new: and saved below
    # X, Y = get_batch() before the loop and a prefetch in it: the loader reads ahead by itself.
    while iter_num < max_iters:
        x, y = get_batch()
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        iter_num += 1
        print(f"iter {iter_num}: loss {loss.item():.9f}")
        if iter_num % eval_interval == 0:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": iter_num}
            torch.save({**parts, "loader": loader.state_dict()}, checkpoint)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
