"""The models that the method was made for and their kin, as a table: timm 1.0.31's names, roles and figures.

Any other name of timm trains too (see `models`); these are the ones that are tested, each with a gated step. Families
after Sun et al., "Learning From Web data: learning all or learning good?", WebVision 2018, who combined eleven of them.
"""

from dataclasses import dataclass

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels."""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Values from −1 to 1, as the Inception family was trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZooModel:
    """A row of the table."""

    name: str
    """What a recipe's `model` says."""
    family: str
    role: str
    """Why one would train it."""
    parameters: int
    """With a head of 1,000 classes, as papers count."""
    size_px: int = 224
    """Side of the images that it was designed for; a recipe without size_px takes it."""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    """Mean and standard deviation of each channel, of values in [0, 1]."""

    @property
    def normalization_name(self) -> str:
        """For a person."""
        return "0.5, 0.5" if self.normalization == HALF else "ImageNet's"


ZOO = (
    ZooModel(name="resnet50", family="ResNet", role="of recipe webvision1-resnet50", parameters=25_557_032),
    ZooModel(name="resnet101", family="ResNet", role="twice as deep", parameters=44_549_160),
    ZooModel(name="resnet152", family="ResNet", role="three times as deep as ResNet-50", parameters=60_192_808),
    ZooModel(
        name="resnext50_32x4d", family="ResNeXt", role="grouped convolutions at ResNet-50's cost", parameters=25_028_904
    ),
    ZooModel(name="resnext101_32x4d", family="ResNeXt", role="the same, twice as deep", parameters=44_177_704),
    ZooModel(
        name="densenet121",
        family="DenseNet",
        role="every layer sees all before it; fewest parameters",
        parameters=7_978_856,
    ),
    ZooModel(name="densenet169", family="DenseNet", role="the same, deeper", parameters=14_149_480),
    ZooModel(name="densenet201", family="DenseNet", role="the same, deepest", parameters=20_013_928),
    ZooModel(
        name="inception_v3",
        family="Inception",
        role="several kernel sizes side by side, larger images",
        parameters=23_834_568,
        size_px=299,
        normalization=HALF,
    ),
    ZooModel(
        name="inception_v4",
        family="Inception",
        role="the same, deeper",
        parameters=42_679_816,
        size_px=299,
        normalization=HALF,
    ),
    ZooModel(
        name="inception_resnet_v2",
        family="Inception",
        role="with residuals; what papers on mini-WebVision train",
        parameters=55_843_464,
        size_px=299,
        normalization=HALF,
    ),
    ZooModel(
        name="legacy_seresnet50",
        family="SE-ResNet",
        role="channels are weighed by what the image holds",
        parameters=28_088_024,
    ),
    ZooModel(name="legacy_seresnet101", family="SE-ResNet", role="the same, twice as deep", parameters=49_326_872),
    ZooModel(name="seresnet50", family="SE-ResNet", role="timm's present layers and weights", parameters=28_088_024),
    ZooModel(
        name="legacy_seresnext50_32x4d",
        family="SE-ResNeXt",
        role="grouped convolutions with weighed channels",
        parameters=27_559_896,
    ),
    ZooModel(
        name="legacy_seresnext101_32x4d", family="SE-ResNeXt", role="the same, twice as deep", parameters=48_955_416
    ),
    ZooModel(
        name="seresnext50_32x4d", family="SE-ResNeXt", role="timm's present layers and weights", parameters=27_559_896
    ),
    ZooModel(
        name="legacy_senet154", family="SENet", role="the largest; SENet's entry to ILSVRC 2017", parameters=115_088_984
    ),
)


def as_text(small: list[str]) -> str:
    """The table for a terminal, with the names of the project's own small models under it."""
    rows = [("model", "family", "parameters", "px", "mean, std", "role")]
    rows += [
        (model.name, model.family, f"{model.parameters:,}", str(model.size_px), model.normalization_name, model.role)
        for model in ZOO
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (2, 3)
    lines = [
        "  ".join(f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]
    lines += [
        "",
        "Parameters with a head of 1,000 classes. A recipe's model may be any other name of timm; for images of 32 px,",
        f"{', '.join(small)}.",
    ]
    return "\n".join(lines)


def as_markdown() -> str:
    """The table of docs/models.md."""
    rows = [
        f"| `{model.name}` | {model.family} | {model.parameters:,} | {model.size_px} | {model.normalization_name} "
        f"| {model.role} |"
        for model in ZOO
    ]
    head = ["| model | family | parameters | px | mean, std | role |", "| --- | --- | ---: | ---: | --- | --- |"]
    return "\n".join([*head, *rows]) + "\n"
