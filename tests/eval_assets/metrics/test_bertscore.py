"""BERTScore with a real encoder, and what goes wrong in bert-score unless one looks out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bert_score import BERTScorer

from eval_assets.metrics import ScoringSettings, score_samples
from eval_assets.metrics.bertscore import _scorer
from eval_assets.suite.spec import MetricSpec
from resources.errors import UserError
from resources.records import Sample

MakeSample = Callable[..., Sample]
PARTS = ("precision", "recall", "f1")
SPECS = [MetricSpec(metric=f"bertscore_{part}") for part in PARTS]
PAIRS = (
    ("A cat sat on the mat.", ["The cat is sitting on a mat.", "Stocks fell sharply on Monday."]),
    ("Stocks fell.", ["The cat is sitting on a mat.", "Shares dropped sharply on Monday."]),
    ("identical", ["identical"]),
    ("東京 — Ünïcödé 🙂", ["Tokyo"]),
)


@pytest.fixture(scope="module")
def scoring(bertscore_model: Path) -> ScoringSettings:
    return ScoringSettings(str(bertscore_model), 6, "cpu")


def answered(make_sample: MakeSample) -> list[Sample]:
    return [make_sample(output=output, references=references) for output, references in PAIRS]


def test_it_is_the_librarys_best_over_the_references(
    make_sample: MakeSample, scoring: ScoringSettings
) -> None:
    samples = answered(make_sample)
    score_samples(samples, SPECS, scoring)
    library = BERTScorer(model_type=scoring.bertscore_model, num_layers=6, device="cpu")
    expected = library.score([output for output, _ in PAIRS], [references for _, references in PAIRS])
    for part, values in zip(PARTS, expected, strict=True):
        found = [sample.scores[f"bertscore_{part}"] for sample in samples]
        assert found == pytest.approx(values.tolist(), abs=1e-5)
    assert samples[2].scores["bertscore_f1"] == pytest.approx(1, abs=1e-5)
    assert samples[3].scores["bertscore_f1"] < samples[0].scores["bertscore_f1"] < 1


def test_a_pair_with_an_empty_text_scores_0_and_leaves_the_others_alone(
    make_sample: MakeSample, scoring: ScoringSettings
) -> None:
    """bert-score raises AttributeError on an empty text, and with it loses every score of the batch."""
    alone = answered(make_sample)
    score_samples(alone, SPECS, scoring)
    samples = [
        make_sample(output="", references=["a reference"]),
        make_sample(output=" \n", references=["a reference", ""]),
        make_sample(output="an output", references=[" "]),
        make_sample(output="", references=[""]),
        *answered(make_sample),
        make_sample(output="identical", references=["", "identical"]),
        make_sample(output="\u200b", references=["a reference"]),
    ]
    score_samples(samples, SPECS, scoring)
    assert all(sample.error is None for sample in samples)
    for sample in [*samples[:4], samples[-1]]:
        assert sample.scores == dict.fromkeys(sample.scores, 0.0)
    for found, expected in zip(samples[4:8], alone, strict=True):
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)
    assert samples[8].scores["bertscore_f1"] == pytest.approx(1, abs=1e-5)


def test_scores_do_not_depend_on_the_order_of_the_samples(
    make_sample: MakeSample, scoring: ScoringSettings
) -> None:
    straight, reverse = answered(make_sample), answered(make_sample)[::-1]
    score_samples(straight, SPECS, scoring)
    score_samples(reverse, SPECS, scoring)
    assert [sample.scores for sample in straight] == [sample.scores for sample in reverse[::-1]]


def test_more_pairs_than_fit_one_batch_are_all_scored_and_texts_may_be_overlong(
    make_sample: MakeSample, scoring: ScoringSettings
) -> None:
    samples = [make_sample(output=f"number {i}", references=[f"number {i}"]) for i in range(70)]
    samples.append(make_sample(output="many words " * 400, references=["many words " * 400]))
    score_samples(samples, SPECS, scoring)
    assert [sample.scores["bertscore_recall"] for sample in samples] == pytest.approx([1.0] * 71, abs=1e-5)


def test_the_encoder_is_loaded_once_for_a_process(
    make_sample: MakeSample, scoring: ScoringSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_samples(answered(make_sample), SPECS, scoring)
    monkeypatch.setattr("bert_score.BERTScorer", None)
    score_samples(answered(make_sample), SPECS, scoring)


def test_the_outputs_extraction_is_what_is_compared(
    make_sample: MakeSample, scoring: ScoringSettings
) -> None:
    sample = make_sample(output="Well: <a cat>", references=["a cat"])
    extracting = MetricSpec.model_validate(
        {"metric": "bertscore_f1", "name": "inner", "extract": {"regex": "<(.*)>"}}
    )
    score_samples([sample], [*SPECS, extracting], scoring)
    assert sample.scores["inner"] == pytest.approx(1, abs=1e-5)
    assert sample.scores["bertscore_f1"] < 0.99


def test_a_folder_with_t5_in_its_path_is_no_t5_and_a_tokenizer_may_lack_its_length(
    make_sample: MakeSample, scoring: ScoringSettings, bertscore_model: Path, tmp_path: Path
) -> None:
    """bert-score picks the class of the model by its name; a length of 1e30 overflows its truncation."""
    folder = tmp_path / "best5-encoder"
    shutil.copytree(bertscore_model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    here, there = answered(make_sample), answered(make_sample)
    overlong = make_sample(output="many words " * 400, references=["other words " * 400])
    score_samples(here, SPECS, scoring)
    score_samples([*there, overlong], SPECS, ScoringSettings(str(folder), None, "cpu"))
    for one, other in zip(here, there, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert overlong.scores["bertscore_f1"] > 0.5


class TestABadEncoderGetsOneClearLine:
    @staticmethod
    def message(model: str, layers: int | None = None) -> str:
        with pytest.raises(UserError) as raised:
            _scorer(model, layers, "cpu")
        text = str(raised.value)
        assert "\n" not in text
        assert "BERTScore" in text
        return text

    def test_none_at_all(self) -> None:
        assert "EVAL_BERTSCORE_MODEL" in self.message("")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        assert str(tmp_path / "gone") in self.message(str(tmp_path / "gone"))

    def test_a_folder_without_safetensors(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
        assert "safetensors" in self.message(str(tmp_path))

    def test_a_folder_whose_configuration_says_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert "can't be loaded" in self.message(str(tmp_path))

    def test_a_layer_that_the_model_does_not_have(self, bertscore_model: Path) -> None:
        assert "6 layers, not 7" in self.message(str(bertscore_model), 7)
