"""The text of a model card, as a jinja2 template; its header is that of Hugging Face's model cards."""

__all__ = ["MODEL_CARD"]

MODEL_CARD = """---
library_name: pytorch
{% if pipeline_tag %}
pipeline_tag: {{ pipeline_tag }}
{% endif %}
tags: [bigstep, {{ task }}]
model-index:
- name: {{ network | yaml }}
  results:
  - task: {type: {{ pipeline_tag or task }}}
    dataset: {name: {{ source | yaml }}, type: {{ source | yaml }}, split: test, revision: {{ manifest.digest | yaml }}}
    metrics:
{% for name, value in tested.totals.items() %}
    - {type: {{ name | yaml }}, value: {{ value | score }}}
{% endfor %}
---

# Model card: {{ network | md }} on {{ source | md }}

{{ tested.verdict | md }}

## Intended use

{% if manifest.is_image %}
Takes images ({{ manifest.size }} x {{ manifest.size }} pixels, {{ manifest.channels }} \
channel{{ "s" if manifest.channels > 1 }}; other sizes are resized)
{%- else %}
Takes arrays of shape {{ manifest.sample_shape | list }}, {{ manifest.sample_dtype }}
{%- endif %}
{% if task == "classification" %}
 and returns the probability of each of {{ "{:,}".format(manifest.classes | length) }} classes: {{ names }}. \
It is meant for samples like those it learned from, each of one of these classes.
{% elif task == "multilabel" %}
 and returns the probability of each of {{ "{:,}".format(manifest.classes | length) }} labels: {{ names }}. \
A sample may have any number of them; one is predicted above one half.
{% else %}
 and returns {{ "{:,}".format(manifest.classes | length) }} number{{ "s" if manifest.classes | length > 1 }}: {{ names }}. \
It is meant for samples like those it learned from.
{% endif %}

## Data

| | |
| --- | --- |
{{ ("source", manifest.source) | row }}
{% for part, count in parts.items() %}
{{ (part ~ " samples", "{:,}".format(count)) | row }}
{% endfor %}
{{ ("skipped files", "{:,}".format(manifest.num_refused)) | row }}
| digest | `{{ manifest.digest }}` |

## Procedure

| | |
| --- | --- |
{% for name, value in story.procedure.items() %}
{{ (name, value) | row }}
{% endfor %}
{% if story.parameters %}

| parameter that differs from the defaults | value | default |
| --- | --- | --- |
{% for row in story.parameters %}
{{ row | row }}
{% endfor %}
{% endif %}

## Metrics

On the test part, which neither trained the model nor chose it:

| metric | value |
| --- | ---: |
{% for name, value in tested.totals.items() %}
{{ (name | replace("_", " "), value | score) | row }}
{% endfor %}

## Metrics by {{ tested.table.header[0] }}

{% if table | length < tested.table.rows | length %}
The {{ table | length }} {{ tested.table.worst }} of {{ "{:,}".format(tested.table.rows | length) }}; classes.csv has all.

{% endif %}
{{ tested.table.header | row }}
| --- |{% for _ in tested.table.header[1:] %} ---: |{% endfor %}

{% for cells in table %}
{{ cells | row }}
{% endfor %}

## Calibration

{{ tested.calibration | md }}

## Limits

{% for line in limits %}
- {{ line }}
{% endfor %}
{% if not story.model.members %}
- One training: how much its scores spread between seeds is not part of this card; `bigstep repro --seeds 5` measures it.
{% endif %}

## How to load and serve

In the project, with bigstep installed. NAME is the model's in MLflow's registry, `{{ registered }}` unless \
`tracking.registered_model` names another.

```console
$ bigstep verify          # checksums of data and models
$ bigstep predict FILE    # the champion of the registry; with --model {{ story.folder }} this one
$ mlflow models serve -m models:/NAME@champion --env-manager local --port 5001
```

The weights are `model.safetensors` in `{{ story.folder }}`; `model.json` beside them has their SHA-256, and how to build the \
network.
"""
