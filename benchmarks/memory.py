"""What keeping freed memory gains and costs, at four image sizes: time and system time of a gradient, peak memory.

    python benchmarks/memory.py [--rounds 3] [--seconds 5]

Each measurement is a process of its own that computes gradients of a network by its images, as every attack does. The
two forms take turns: `kept` calls `gap.core.memory.keep_freed_memory` first, as the command line does, `given back`
leaves the C library as it is. Medians are printed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

# A classifier for each image size in pixels, and the number of images in a batch.
CASES = {
    28: ("mnist-cnn", 128),
    32: ("cifar-resnet18-narrow", 64),
    224: ("timm:tf_efficientnet_lite0@none", 16),
    512: ("drawing-hardened", 1),
}


def measure(size: int, keep: bool, seconds: float) -> dict[str, float]:
    """Milliseconds and system milliseconds of one gradient, and the peak memory of this process in MiB."""
    from gap.core.memory import keep_freed_memory

    if keep:
        keep_freed_memory()
    import torch

    from gap.classifiers.adapters import as_classifier

    name, images = CASES[size]
    network = as_classifier(name, channels=1 if size == 28 else 3, size=(size, size)).eval().requires_grad_(False)
    batch = torch.rand(images, network.spec.channels, size, size)

    def gradient() -> None:
        leaf = batch.clone().requires_grad_()
        network.logits_at(leaf).logsumexp(dim=1).sum().backward()

    for _ in range(3):
        gradient()
    started, system, count = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_stime, 0
    while time.perf_counter() - started < seconds:
        gradient()
        count += 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": (time.perf_counter() - started) / count * 1000,
        "system_ms": (usage.ru_stime - system) / count * 1000,
        "MiB": usage.ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each form at each size")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--worker", nargs=2, metavar=("SIZE", "FORM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        size, form = arguments.worker
        print(json.dumps(measure(int(size), form == "kept", arguments.seconds)))
        return
    print(f"{'pixels':>6} {'form':12} {'ms':>8} {'system ms':>10} {'peak MiB':>9}")
    for size in CASES:
        results: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
        for _ in range(arguments.rounds):
            for form, rows in results.items():
                command = [sys.executable, __file__, "--seconds", str(arguments.seconds), "--worker", str(size), form]
                rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        for form, rows in results.items():
            ms, system, peak = (statistics.median(row[key] for row in rows) for key in ("ms", "system_ms", "MiB"))
            print(f"{size:6} {form:12} {ms:8.1f} {system:10.2f} {peak:9.0f}", flush=True)


if __name__ == "__main__":
    main()
