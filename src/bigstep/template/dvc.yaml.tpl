# The pipeline. Each stage lists your code, the code of bigstep that it runs (pipelines/code), and the sections of
# params.yaml that it reads; `hardware` and `tracking` decide no result, so DVC does not follow them.
stages:
  prepare:
    desc: the source's images into a store
    cmd: python pipelines/prepare.py
    deps:
    - ${data.root}
    - custom/data
    - pipelines/code/prepare.txt
    - pipelines/installed.py
    - pipelines/prepare.py
    params:
    - data
    outs:
    - data/prepared
  train:
    desc: the store into a model
    cmd: python pipelines/train.py
    deps:
    - data/prepared
    - custom/model
    - weights
    - pipelines/code/train.txt
    - pipelines/installed.py
    - pipelines/train.py
    params:
    - model
    - train
    outs:
    - results/train/model.safetensors
    - results/train/model.json
    - results/train/history.csv
    - results/train/curves.png
    metrics:
    - results/train/metrics.json:
        cache: false
  evaluate:
    desc: the model on the test images
    cmd: python pipelines/evaluate.py
    deps:
    - data/prepared
    - results/train/model.safetensors
    - results/train/model.json
    - results/train/metrics.json
    - results/train/history.csv
    - custom/model
    - pipelines/code/evaluate.txt
    - pipelines/installed.py
    - pipelines/evaluate.py
    params:
    - data
    - evaluate
    - model
    - train
    outs:
    - results/evaluate/predictions.csv
    - results/evaluate/classes.csv
    - results/evaluate/confusion.png
    - results/evaluate/calibration.png
    - results/evaluate/mistakes.png
    - results/evaluate/report.html
    - results/evaluate/card.md
    metrics:
    - results/evaluate/metrics.json:
        cache: false

plots:
- loss:
    template: epochs
    x: epoch
    y:
      results/train/history.csv: [train_loss, val_loss]
    y_label: loss
    title: Loss over epochs
- accuracy:
    template: epochs
    x: epoch
    y:
      results/train/history.csv: val_accuracy
    title: Validation accuracy over epochs
- confusion:
    template: confusion
    x: actual
    y:
      results/evaluate/predictions.csv: predicted
    title: Test images, actual against predicted class
- results/train/curves.png
- results/evaluate/confusion.png
- results/evaluate/calibration.png
- results/evaluate/mistakes.png
