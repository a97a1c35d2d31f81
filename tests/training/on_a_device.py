"""`threefold train` on the device of pretend_device.py, once for each argument list of a JSON list.

A process of its own: transformers keeps its device for the life of one.
"""

import json
import os
import sys

os.environ["ACCELERATE_TORCH_DEVICE"] = "meta"

from pretend_device import DEVICE, pretend_device
from threefold.cli import main

if __name__ == "__main__":
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == DEVICE.type
    for arguments in json.loads(sys.argv[1]):
        with pretend_device():
            code = main(["--traceback", "train", *arguments])
        if code:
            sys.exit(code)
