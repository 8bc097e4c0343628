"""The command line; one file per command. Nothing here imports torch or transformers before a command needs it."""
