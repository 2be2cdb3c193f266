"""Results for and from elsewhere: lm-evaluation-harness's files both ways, and tables for any tool."""

from eval_assets.exchange.exporting import Exported, export_harness
from eval_assets.exchange.importing import Imported, ImportedEvaluation, import_harness

__all__ = ["Exported", "Imported", "ImportedEvaluation", "export_harness", "import_harness"]
