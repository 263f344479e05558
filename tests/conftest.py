"""Its place puts ``tests/`` on the import path, so that tests in subfolders can import ``tiny_models``."""
