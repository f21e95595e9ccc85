"""Write down how large the two images are: results/images.json. They are built before, by `make images`."""

from __future__ import annotations

import argparse

import docker
from record import current_commit, write_result


def main() -> None:
    """Ask the Docker engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cpu", help="name of the image")
    parser.add_argument("gpu", help="name of the image")
    options = parser.parse_args()
    client = docker.from_env()
    sizes = {}
    for target, name in (("cpu", options.cpu), ("gpu", options.gpu)):
        image = client.images.get(name)
        layers = [layer["Size"] for layer in image.history() if layer["Size"]]
        sizes[target] = {"bytes": image.attrs["Size"], "layers": layers}
    print(f"wrote {write_result('images', {'images': sizes}, current_commit())}")


if __name__ == "__main__":
    main()
