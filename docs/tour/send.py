"""Send real digits to a server, for docs/tour.md: `python docs/tour/send.py MODEL`."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from models import data


def main() -> int:
    """Send them one by one; say how many were read right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=400, help="images (400), of 450 held out")
    parser.add_argument("--shifted", action="store_true", help="as scanned in uneven light")
    parser.add_argument("--blank", action="store_true", help="one empty picture instead")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    options = parser.parse_args()
    held_out = data.split().held_out
    images, labels = held_out.images[: options.count], held_out.labels[: options.count].tolist()
    if options.shifted:
        images = data.shift(images)
    if options.blank:
        images, labels = torch.zeros(1, 8, 8), [-1]
    right = 0
    for image, label in zip(images.tolist(), labels, strict=True):
        answer = _ask(f"{options.url}/predictions/{options.model}", {"inputs": image})
        right += answer["labels"]["probabilities"] == str(label)
        if options.blank:
            print(json.dumps(answer))
    if not options.blank:
        print(f"{right} of {len(labels)} read right")
    return 0


def _ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310 (the address is the user's own)
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url}: {error.code}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"{url}: no server answers ({error.reason}); start one with scripts/serve")


if __name__ == "__main__":
    sys.exit(main())
