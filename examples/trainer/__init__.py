"""LoRA fine-tuning with TRL's SFTTrainer or transformers' Trainer, and patchkit.TrainerCallback."""
