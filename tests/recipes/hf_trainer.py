"""The usual script around a Trainer, GPT-2 from its configuration. What shardload replaces stands in comments above its lines."""

from __future__ import annotations

import sys

from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

import shardload
from shardload.integrations.transformers import ShardTrainer


def main(data, out, max_steps):
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=1, n_head=2))
    args = TrainingArguments(
        output_dir=out,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=max_steps,
        learning_rate=1e-2,
        save_steps=10,
        logging_steps=5,
        report_to=[],
        use_cpu=True,
    )
    # dataset = load_dataset("text", data_files=data)["train"].map(tokenize, batched=True).map(group_texts, batched=True)
    # trainer = Trainer(model=model, args=args, train_dataset=dataset, data_collator=default_data_collator)
    loader = shardload.ShardLoader(shardload.open(data), 8, shuffle=True, batch_transform=with_labels)
    trainer = ShardTrainer(model=model, args=args, train_loader=loader)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out))
    print(
        "steps", trainer.state.global_step, "epochs", trainer.state.epoch, "loss", trainer.state.log_history[-2]["loss"]
    )


def with_labels(batch):
    return {"input_ids": batch["tokens"], "labels": batch["tokens"]}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
