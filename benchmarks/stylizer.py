"""The time and the losses of feed-forward stylizers, compared with L-BFGS on the same backbone.

    python benchmarks/stylizer.py FOLDER... --content A --content B --style C [--size 256] [--evaluations 300]

Each content is drawn in each style by every stylizer in a folder of `gap train-stylizer`, and by `gap stylize` with the
objective of the training of stylizers. The output is the seconds for an image, and the relative distances to style and
content in the backbone's layers, also as multiples of those of L-BFGS; medians over the pairs.
"""

import argparse
import statistics
import time
from itertools import product
from pathlib import Path

from torch import Tensor

from gap.classifiers.classifier import load_classifier
from gap.core.artifact import open_artifact
from gap.imagery.comparison.methods import PerceptualMetric
from gap.imagery.drawings import sized_image
from gap.imagery.feed_forward.stylizer import KIND, StylizerCard, load_stylizer
from gap.imagery.options import StyleTransferOptions
from gap.imagery.style_transfer import transfer_style


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--content", action="append", required=True, type=Path)
    parser.add_argument("--style", action="append", required=True, type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--evaluations", type=int, default=300)
    arguments = parser.parse_args()
    card = open_artifact(arguments.folders[0], KIND).read(StylizerCard)
    backbone = load_classifier(card.backbone.name)
    stylizers = {str(folder): load_stylizer(folder, backbone) for folder in arguments.folders}
    config = StyleTransferOptions(evaluations=arguments.evaluations)
    results: dict[str, list[tuple[float, float, float]]] = {"L-BFGS": [], **{name: [] for name in stylizers}}
    for content_path, style_path in product(arguments.content, arguments.style):
        content, style = (
            sized_image(path, backbone.spec.channels, arguments.size) for path in (content_path, style_path)
        )
        metric = PerceptualMetric(backbone, content, [style])
        for name in results:
            start = time.perf_counter()
            picture: Tensor
            if name == "L-BFGS":
                picture = transfer_style(content, [style], backbone, options=config).image
            else:
                picture = stylizers[name](content, [style])
            seconds = time.perf_counter() - start
            results[name].append((seconds, *metric(picture)))
            print(
                f"{content_path.stem}, {style_path.stem}, {name}: {seconds:.2f} s,"
                f" content and style {results[name][-1][1:]}",
                flush=True,
            )
    reference = results["L-BFGS"]
    for name, pairs in results.items():
        seconds, content, style = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [
            statistics.median(
                result[index] / reference_result[index]
                for result, reference_result in zip(pairs, reference, strict=True)
            )
            for index in (1, 2)
        ]
        print(
            f"{name}: {seconds:.2f} s; content {content:.3f} ({ratios[0]:.2f} x), style {style:.4f} ({ratios[1]:.1f} x)"
        )


if __name__ == "__main__":
    main()
