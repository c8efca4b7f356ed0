"""Good recipes that hold what those of the repository lack: what mutants and recipes made by hand start from."""

BASE = """\
name: nasty
stages:
  data:     {kind: data, source: {kind: streets, seed: 7, train: 24, val: 8, test: 0}, size: [64, 128], limit: 20}
  teacher:  {kind: train, data: data, model: {kind: tiny, size: large}, fit: {steps: 20, batch: 4, lr: 1.0e-3, seed: 1}}
  student:
    kind: distill
    data: data
    teacher: teacher
    model: {kind: tiny, size: small}
    losses:
      - {kind: pixel, weight: 1.0, temperature: 1.0, at: labels}
    fit: {steps: 20, batch: 4, lr: 1.0e-3, seed: 1, augment: {scale: [0.75, 1.5]}}
  onnx:     {kind: export, data: data, checkpoint: student}
  engine:   {kind: optimize, onnx: onnx, engine: {kind: onnxruntime, threads: 2}}
  measured: {kind: validate, data: data, reference: student, candidates: [teacher, onnx, engine], latency_of: [onnx, engine]}
  gate:     {kind: gate, measured: measured, rules: [{metric: miou, of: engine, against: student, at_least: -0.05}]}
  bundle:   {kind: bundle, data: data, onnx: onnx, engine: engine, measured: measured, verdict: gate}
profiles:
  quick: {stages.teacher.fit.steps: 5}
"""

EVERYTHING = """\
# What the recipes of the repository leave out.
name: everything
stages:
  photos:
    kind: data
    source:
      {kind: folder, root: /data/photos, images: "{split}/{stem}.jpg", labels: "{split}/{stem}.png", splits: [train, val], lists: null}
    size: [512, 512]
    limit: null
  table: {kind: data, source: {kind: hf, files: {train: [a.parquet], val: [b.parquet]}, image: image, label: label, first: 0}, size: native}
  town: {kind: data, source: {kind: cityscapes, root: /data/cityscapes}, size: [512, 1024]}
  given:
    kind: load
    data: photos
    model: {kind: segformer, size: b3, drop_path: 0.1, align_corners: false}
    weights: {hub: nvidia/mit-b5, revision: 0123456789abcdef0123456789abcdef01234567}
  teacher:
    kind: train
    data: photos
    model: {kind: hf, settings: {model_type: upernet}}
    init: {file: weights.safetensors}
    fit: {crop: [512, 512]}
  words: {kind: embed, data: photos, file: words.npy, rows: [road, traffic light, sky], names: {heaven: sky}}
  spoken: {kind: embed, data: photos, clip: {file: clip}, prompt: "a photo of the {} of a town", names: {signsymbol: traffic sign}}
  student:
    kind: distill
    data: photos
    teacher: given
    text: words
    model: {kind: segformer, size: b1, align_corners: false}
    task: {kind: ce, aux_weight: 0.4}
    losses: [{kind: pixel, weight: 1.0, at: logits}, {kind: cwd, weight: 0.3}, {kind: text, channel_weight: 0.3}]
    init: null
    fit:
      steps: 2000
      optimizer: sgd
      schedule: cosine
      precision: bf16
      ema: 0.999
      clip: null
      compile: true
      channels_last: true
      track: tensorboard
      augment: {scale: [0.5, 2.0], flip: 0.5, colour: 0.2}
  onnx: {kind: export, data: photos, checkpoint: student, exporter: dynamo, dynamic_batch: true, logits: false}
  plain: {kind: optimize, checkpoint: student, engine: {kind: pytorch, precision: bf16, device: cpu, threads: null}}
  engine: {kind: optimize, onnx: onnx, engine: {kind: openvino, precision: f32}}
  quick: {kind: optimize, onnx: onnx, engine: {kind: onnxruntime, provider: cuda}}
  measured:
    kind: validate
    data: photos
    reference: student
    candidates: [given, teacher, onnx, plain, engine]
    latency_of: [plain, engine]
    latency: {runs: 10, warmup_ms: 100, threads: null}
  gate:
    kind: gate
    measured: measured
    rules:
      - {metric: size_mb, of: engine, against: null, at_most: 20.0}
      - {metric: engine_p50_ms, of: engine, against: plain, at_most_ratio: 1.0}
      - {metric: agreement, of: onnx, at_least: 0.99}
  bundle: {kind: bundle, data: photos, onnx: onnx, engine: engine, measured: measured, verdict: gate}
profiles:
  cpu:
    stages.photos.size: [64, 64]
    stages.student.fit.steps: 5
    stages.student.fit.crop: [64, 64]
    stages.student.losses.0.at: labels
    stages.engine.engine.precision: bf16
  small: {stages.student.model.size: b0, stages.given.model.kind: segformer, stages.photos.source.kind: folder}
"""
