"""A language model that transformers does not have. What patchkit needs to know of it is one file beside it."""
