"""The cache directory, in three files.

``storage`` says where it is, reads and writes it; ``owners`` says whose files are believed; ``contents`` shows a person
what it holds, and clears it.
"""
