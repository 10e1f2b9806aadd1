"""One local Ray cluster for all tests of this folder: starting one takes seconds."""

import pytest


@pytest.fixture(scope="session")
def cluster():
    """A cluster of two logical CPUs on the loopback address, never one that happens to run already."""
    import ray

    from pipelines.ray_session import start_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a killed worker is noticed in 0.2 s instead of 2 s
        start_ray(num_cpus=2)
        yield
        ray.shutdown()
