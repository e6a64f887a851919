"""Draws ``pictures/explain.jpg``: what an ImageNet network of torchvision sees in the photographs of the package.

``python docs/make_explain_picture.py WEIGHTS LABELS``: a state dict of ``torchvision.models.mobilenet_v2`` whose
pixels lie between -1 and 1, and a JSON list of its 1000 class names.
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import mobilenet_v2

from saccade import render
from saccade.data.decode import read_image
from saccade.data.embedded import photos
from saccade.explanation.adapt import adapt
from saccade.explanation.explain import ExplainOptions, Subject, explain_batch
from saccade.explanation.methods import method
from saccade.ops.image import Preprocess

HERE = Path(__file__).parent
SHOWN = ("cat", "owl", "dog_bicycle", "parrot")
METHODS = {
    "hirescam": "hirescam",
    "layercam": "layercam",
    "gradcam": "gradcam",
    "smoothgrad": "smoothgrad",
    "integrated gradients": "integrated_gradients",
    "occlusion": "occlusion",
    "rise, 300 masks": method("rise", num_masks=300),
}


def main() -> None:
    """Load, explain, draw."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    model = mobilenet_v2()
    state = torch.load(sys.argv[1], weights_only=True)
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    )
    labels = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    preprocess = Preprocess(size=(224, 224), crop_fraction=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    subject = Subject(adapt(model.eval(), preprocess, classes=names_of(labels)))
    rows = []
    with photos() as files:
        for path in (path for name in SHOWN for path in files if path.stem == name):
            image = read_image(path)
            row = [render.Panel(image=image, title=path.stem)]
            for told, chosen in METHODS.items():
                heat = explain_batch(subject, [image], [None], ExplainOptions(method=chosen, verdict=False))[0][0]
                panel = render.Panel(image=image, heat=heat.map, is_signed=heat.is_signed, title=told, caption=heat.of)
                row.append(panel)
                print(f"{path.stem}, {told}: {heat.of}, logit {heat.score:.1f}", flush=True)
            rows.append(row)
    path = HERE / "pictures" / "explain.jpg"
    # Photographs: as PNG they would take a megabyte and a half.
    drawn = Image.open(BytesIO(render.to_png(render.side_by_side(rows, size=1.8), dpi=90)))
    drawn.convert("RGB").save(path, quality=88)
    print(path)


def names_of(labels: list[str]) -> tuple[str, ...]:
    """The first word for each class; ImageNet has two cranes, so what repeats gets its number."""
    first = [name.partition(",")[0] for name in labels]
    return tuple(name if first.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(first))


if __name__ == "__main__":
    main()
