"""The sections, one file each: ``cells(setting)`` gives its cells and may import what the section is about."""
