"""Tasks: a model with its loss, metrics and data, trained and evaluated on Lightning. Needs the extra `tasks`."""

from ..errors import require

for _module in ("pydantic", "yaml", "lightning", "torchmetrics", "tensorboard"):
    require(_module, "tasks")
