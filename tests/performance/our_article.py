"""The article script's work through this project: items, engine, metrics, committed to a results store.

    python -m tests.performance.our_article REQUEST.json OUTPUT.json

The request is ``{"registry", "key", "encoder", "layers", "threads", "mirror", "store"}``.
"""

import json
import sys
from functools import partial
from pathlib import Path

from tests.performance.measure import Figures, engine_seconds, peak_memory_bytes, timed
from tests.performance.works import WORKS, OtherWork


def main() -> None:
    figures: Figures = {}
    with timed(figures, "import"):
        from eval_assets.evaluating.evaluator import Benchmark, cell_for, evaluate
        from eval_assets.metrics import ScoringSettings
        from eval_assets.suite import BenchmarkSpec, load_suite, normalize
        from resources.datasets import read_rows
        from resources.engines.settings import EngineSettings, fingerprint_fields
        from resources.engines.transformers_engine import TransformersEngine
        from resources.keys import ModelKey
        from resources.registries.folder import FolderRegistry
        from resources.registries.verify import measure
        from resources.results import ResultsStore
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    key = ModelKey.parse(request["key"])
    model = measure(key, FolderRegistry(request["registry"]).fetch(key), None)
    settings = EngineSettings(device="cpu", dtype="float32", threads=request["threads"])
    with timed(figures, "load"):
        engine = TransformersEngine.load(Path(model.path), settings)
    (work,) = (work for work in WORKS if isinstance(work, OtherWork) and work.kind == "article")
    squad = load_suite()["squad"]
    document = squad.model_dump(exclude_unset=True)
    document["generation"] = {**document["generation"], **work.spec["generation"]}
    document |= {name: value for name, value in work.spec.items() if name != "generation"}
    spec = BenchmarkSpec.model_validate({**document, "folder": squad.folder})
    scoring = ScoringSettings(bertscore_model=request["encoder"], bertscore_layers=request["layers"])
    store = ResultsStore(request["store"])
    with timed(figures, "evaluation"):
        items = normalize(spec, partial(read_rows, mirror=Path(request["mirror"]))).items
        benchmark = Benchmark(spec, "benchmark", items, len(items))
        cell = cell_for(model, benchmark, fingerprint_fields(settings), scoring)
        record = evaluate(cell, model, benchmark, lambda: engine, store, scoring=scoring).record
    figures["peak_bytes"] = peak_memory_bytes()
    figures["generate_wall"] = engine_seconds(record["seconds"])
    samples = sorted(store.samples(record), key=lambda sample: sample.index)
    found = [{"text": sample.output, "scores": dict(sample.scores)} for sample in samples]
    Path(sys.argv[2]).write_text(json.dumps({"figures": figures, "items": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
