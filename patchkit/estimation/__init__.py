"""What a training step will keep and peak at, counted on tensors without data: see :func:`patchkit.estimate`."""
