"""One evaluation, from items to a committed record: `evaluator` asks a model, scores, and commits."""
