"""Tasks: a model with its loss, metrics and data, trained and evaluated on Lightning. Needs the extra `tasks`."""
