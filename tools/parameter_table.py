"""Write docs/parameters.md, the table of every key of params.yaml, from the schema."""

from bigstep.config.params import SECTIONS
from bigstep.config.section import Section, rule_of
from bigstep.config.yaml_files import example_of
from dvc_dependencies import ROOT

PAGE = ROOT / "docs" / "parameters.md"
INTRODUCTION = """# Parameters

<!-- written by `make documentation` from src/bigstep/config: edit the descriptions there -->

`params.yaml` holds every value. DVC reruns a stage when a key of a section that decides the result changes; the other sections
change speed, memory, tracking or the search only. Set a key in the file, or for one run with
`bigstep repro --set section.key=value`.

The effective batch B (`train.effective_batch_size`), the micro-batch m (`hardware.micro_batch_size`) and the number of
accumulation steps A (`hardware.accumulation_steps`) belong together: give two of them, and A = B / m, rounded up. Under DVC
one of the two must be B, because DVC does not follow `hardware`.
"""

TRANSFORMS = """## Lists of transforms

`train.augmentation` takes a list of transforms of torchvision.transforms.v2: each is a name, or a name with arguments. They run
in this order, one image at a time, on uint8 images of the store's size, and must return that size. `RandomApply`,
`RandomChoice`, `RandomOrder` and `Compose` nest: their argument `transforms` is such a list.

```yaml
train:
  augmentation:
    - RandomHorizontalFlip
    - RandomCrop: {size: 8, padding: 1}
    - RandomApply:
        transforms: [{ColorJitter: {brightness: 0.2, contrast: 0.2}}]
        p: 0.3
    - RandomChoice:
        transforms:
          - {GaussianBlur: {kernel_size: 3}}
          - {RandomAdjustSharpness: {sharpness_factor: 2.0}}
          - RandomOrder: {transforms: [RandomAutocontrast, {RandomPosterize: {bits: 4}}]}
        p: [0.4, 0.4, 0.2]
```

Types and policies are names (`{ToDtype: {dtype: float32, scale: true}}`, `{AutoAugment: {policy: cifar10}}`). Before training
starts, the list is tried on 32 training images of the store, also with every `p` between 0 and 1 set to 1 and to 0. What fails
or changes the size is refused in one line. Refused by name:

| transforms | why, and what to use |
| --- | --- |
| `MixUp`, `CutMix` | mix two samples: `train.mixup_alpha`, `train.cutmix_alpha` |
| `FiveCrop`, `TenCrop` | return several images: `RandomCrop` |
| `RandomIoUCrop` and what acts on boxes or key points | the images have no boxes: `RandomResizedCrop` |
| `Lambda` | needs a function, which a file cannot hold: your own as `custom/model/file.py:name` ([custom.md](custom.md)) |
| `Normalize`, `LinearTransformation` | would change training images only; the model normalizes: `data.pixel_statistics` |
| `UniformTemporalSubsample` | acts on videos |
"""


def parameters_page() -> str:
    """Return the page in Markdown: a table for each section, with a row for each key."""
    parts = [INTRODUCTION]
    for section in SECTIONS:
        summary = str(section.__doc__).splitlines()[0].partition(" (")[0].rstrip(".")
        followed = "DVC follows it" if section.learning else "DVC does not follow it"
        parts.append(f"## {section.title}\n\n{summary}; {followed}.\n\n{_table(section)}")
    return "\n".join([*parts, TRANSFORMS])


def _table(section: type[Section]) -> str:
    rows = ["| key | default | allowed | what it does |", "| --- | --- | --- | --- |"]
    for key, field in section.model_fields.items():
        text = str(field.description).replace("|", "\\|")
        rows.append(f"| `{section.title}.{key}` | `{example_of(field.default)}` | {rule_of(field)} | {text} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(parameters_page(), encoding="utf-8")
