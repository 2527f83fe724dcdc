"""Detection metrics: a functional part, torchmetrics classes, and the evaluator."""
