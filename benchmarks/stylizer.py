"""What drawing in one pass costs and loses beside drawing by L-BFGS, through the same backbone.

    python benchmarks/stylizer.py FOLDER... --content A --content B --style C [--size 256] [--evaluations 300]

Each content is drawn in each style by every stylizer that `gap train-stylizer` left in a folder, and by `gap stylize`
with the objective that stylizers are trained on. Printed: seconds for a picture, and the distances to style and content
in the backbone's layers, as shares and as multiples of what L-BFGS reaches; medians over the pairs.
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
    swift = {str(folder): load_stylizer(folder, backbone) for folder in arguments.folders}
    config = StyleTransferOptions(evaluations=arguments.evaluations)
    found: dict[str, list[tuple[float, float, float]]] = {"L-BFGS": [], **{name: [] for name in swift}}
    for of, like in product(arguments.content, arguments.style):
        content, style = (sized_image(path, backbone.spec.channels, arguments.size) for path in (of, like))
        judge = PerceptualMetric(backbone, content, [style])
        for name in found:
            started = time.perf_counter()
            picture: Tensor
            if name == "L-BFGS":
                picture = transfer_style(content, [style], backbone, options=config).image
            else:
                picture = swift[name](content, [style])
            seconds = time.perf_counter() - started
            found[name].append((seconds, *judge(picture)))
            print(
                f"{of.stem}, {like.stem}, {name}: {seconds:.2f} s, content and style {found[name][-1][1:]}", flush=True
            )
    reached = found["L-BFGS"]
    for name, each in found.items():
        seconds, content, style = (statistics.median(column) for column in zip(*each, strict=True))
        times = [
            statistics.median(one[part] / other[part] for one, other in zip(each, reached, strict=True))
            for part in (1, 2)
        ]
        print(
            f"{name}: {seconds:.2f} s; content {content:.3f} ({times[0]:.2f} x), style {style:.4f} ({times[1]:.1f} x)"
        )


if __name__ == "__main__":
    main()
