"""The tests of the PyTorch example are there where torch is: `make test-torch` installs it."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["test_pytorch_example.py"]
