"""One architecture under test: its description against the source, and its patched model against the unpatched one."""
