"""Operations: a Triton kernel, its launcher, its torch reference and its registration."""
