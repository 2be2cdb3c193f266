"""One small benchmark of each task type, as the mapping that its YAML file holds."""

from typing import Any

CHOICE: dict[str, Any] = {
    "version": 1,
    "title": "A quiz",
    "source": {"hub": "acme/quiz", "split": "test"},
    "task": "multiple_choice",
    "prompt": "Q: {{question}}\nA:",
    "choices": "options",
    "target": "answer",
    "metrics": ["acc"],
    "primary_metric": "acc",
}
ANSWER: dict[str, Any] = {
    "version": 1,
    "title": "A quiz",
    "source": {"hub": "acme/quiz", "split": "test"},
    "task": "generation",
    "prompt": "Q: {{question}}\nA:",
    "references": "answers",
    "metrics": ["exact_match"],
    "primary_metric": "exact_match",
}
TEXT: dict[str, Any] = {
    "version": 1,
    "title": "A text",
    "source": {"hub": "acme/quiz", "split": "test"},
    "task": "perplexity",
    "text": "page",
    "metrics": ["word_perplexity"],
    "primary_metric": "word_perplexity",
}
