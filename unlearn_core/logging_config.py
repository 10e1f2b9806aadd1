"""Where a run's numbers are logged beside its own folder: TensorBoard, MLflow, Weights & Biases."""

from typing import Literal

from unlearn_core.strict import Strict


class MlflowConfig(Strict):
    """An MLflow tracking server, or a database of one."""

    uri: str
    """Such as http://127.0.0.1:5000, or sqlite:///mlflow.db. A user name and password belong in
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, not here: this is kept in run.json."""
    experiment: str = "unlearn"
    """The experiment's name; made if it does not exist."""


class WandbConfig(Strict):
    """Weights & Biases."""

    project: str = "unlearn"
    """The project's name."""
    entity: str | None = None
    """User or team; null for your own."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes files for `wandb sync` to upload later; `online` needs an account (WANDB_API_KEY)."""


class LoggingConfig(Strict):
    """What logs the steps; none by default. Not part of the run's fingerprint."""

    tensorboard: bool = False
    """Event files in OUTPUT/tensorboard."""
    mlflow: MlflowConfig | None = None
    """Null for none."""
    wandb: WandbConfig | None = None
    """Null for none."""

    @property
    def anything(self) -> bool:
        """Whether there is anything to do."""
        return self.tensorboard or self.mlflow is not None or self.wandb is not None
