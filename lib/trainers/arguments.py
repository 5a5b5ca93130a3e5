"""Settings of the Hugging Face `Trainer`, for one process or several."""

from pathlib import Path

from transformers import TrainingArguments

from lib import files


def make(settings: dict, folder: Path | None, *, cpu: bool) -> TrainingArguments:
    """`TrainingArguments` for the `settings` of `loop.train_`: what it does not need of the Trainer is switched off.

    A batch is divided among the processes that `accelerate launch` or torchrun started, which this call joins. Raises
    ValueError where it can't be.
    """
    made = TrainingArguments(
        output_dir=str(folder or files.cache() / "trainer"),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["micro_batch"],
        learning_rate=settings["learning_rate"],
        weight_decay=0.0,
        max_grad_norm=settings.get("clip", 1.0),
        seed=settings["seed"],
        train_sampling_strategy="sequential",  # the order is that of the data set, which the seed decided
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # `trainer.Loop` writes its own
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        # each process reads the rows itself: those of unequal lengths can't be cut from one padded batch
        accelerator_config={"dispatch_batches": False},
        use_cpu=cpu,
    )
    together = settings["micro_batch"] * made.world_size
    if settings["batch"] % together:
        raise ValueError(
            f"batch={settings['batch']} in {made.world_size} processes of micro_batch={settings['micro_batch']} "
            f"windows; multiples of {together} are allowed; change one."
        )
    made.gradient_accumulation_steps = settings["batch"] // together
    return made
