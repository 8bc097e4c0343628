"""The numeric stage of ``patchkit check``: the parity contract on tiny models of a release."""
