"""Print pip's option for the CPU build of torch, where that is the right one.

    pip install $(python tools/torch_index.py) -r requirements.txt

On Linux, pip's default build brings several gigabytes of CUDA libraries, which a machine without an NVIDIA GPU has no
use for. Nothing is printed elsewhere, nor where pip has an index of its own to ask, or this one cannot be reached.
"""

import shutil
import subprocess
import sys
from urllib.request import urlopen

INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 10  # to wait for an answer


def option() -> str:
    """`--extra-index-url INDEX`, or nothing."""
    if sys.platform != "linux" or shutil.which("nvidia-smi") or has_own_index():
        return ""
    try:
        urlopen(f"{INDEX}/torch/", timeout=SECONDS).close()
    except OSError as error:
        print(f"{INDEX} cannot be reached ({error}): pip's default build of torch comes instead.", file=sys.stderr)
        return ""
    return f"--extra-index-url {INDEX}"


def has_own_index() -> bool:
    """Whether pip has been told, by a file or the environment, where to look; an option here would replace it."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    return "index-url" in told.replace("_", "-").lower()


if __name__ == "__main__":
    print(option())
