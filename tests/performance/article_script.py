"""What people do today: one item after the other through `generate`, ROUGE and BERTScore called for each.

    python -m tests.performance.article_script REQUEST.json OUTPUT.json

The request is ``{"model", "encoder", "layers", "threads", "rows", "max_new_tokens", "stop_early"}``; `rows`
is a Parquet file.
The metrics are called as the package `evaluate` does in `compute` (it can't load them without the hub): a new
RougeScorer and a bootstrapped aggregate each time; the BERTScorer is built at the first call and kept, which
is more than scripts do that call `bert_score.score`. `stop_early` gives `generate` the stop string, which
few scripts do; without it every answer is as long as the limit, and is cut afterwards.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.performance.measure import Figures, peak_memory_bytes, timed

STOP = "\n"


class Metrics:
    """`evaluate.load("rouge")` and `evaluate.load("bertscore")`."""

    def __init__(self, encoder: str, layers: int) -> None:
        self._encoder, self._layers = encoder, layers
        self._scorer: Any = None

    def rouge(self, prediction: str, reference: str) -> dict[str, float]:
        from rouge_score import rouge_scorer, scoring

        scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
        aggregator = scoring.BootstrapAggregator()
        aggregator.add_scores(scorer.score(reference, prediction))
        return {name: float(value.mid.fmeasure) for name, value in aggregator.aggregate().items()}

    def bertscore(self, prediction: str, reference: str) -> float:
        if not prediction or not reference:  # bert_score fails on an empty text
            return 0.0
        if self._scorer is None:
            from bert_score import BERTScorer

            self._scorer = BERTScorer(model_type=self._encoder, num_layers=self._layers)
            self._scorer._tokenizer.model_max_length = 510  # unset in the encoder's files
        return float(self._scorer.score([prediction], [reference])[2][0])


def main() -> None:
    figures: Figures = {}
    with timed(figures, "import"):
        import pyarrow.parquet as pq
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    with timed(figures, "load"):
        tokenizer: Any = AutoTokenizer.from_pretrained(request["model"])
        model: Any = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    rows = pq.read_table(request["rows"]).to_pylist()
    stop = {"stop_strings": [STOP], "tokenizer": tokenizer} if request["stop_early"] else {}
    metrics = Metrics(request["encoder"], request["layers"])
    items = []
    with timed(figures, "evaluation"):
        for row in rows:
            prompt = (
                f"Title: {row['title']}\n\nBackground: {row['context']}\n\n"
                f"Question: {row['question']}\n\nAnswer:"
            )
            inputs = tokenizer(prompt, return_tensors="pt")
            with timed(figures, "generate"):
                output = model.generate(
                    **inputs, max_new_tokens=request["max_new_tokens"], do_sample=False, **stop
                )
            new = output[0][inputs["input_ids"].shape[1] :]
            text = tokenizer.decode(new, skip_special_tokens=True).split(STOP)[0]
            reference = row["answers"]["text"][0]
            scores = metrics.rouge(text.strip(), reference)
            scores["bertscore_f1"] = metrics.bertscore(text.strip(), reference.strip())
            items.append({"text": text, "scores": scores})
    figures["peak_bytes"] = peak_memory_bytes()
    Path(sys.argv[2]).write_text(json.dumps({"figures": figures, "items": items}), encoding="utf-8")


if __name__ == "__main__":
    main()
