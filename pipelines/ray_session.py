"""Connect to a Ray cluster, or start one on this machine that nobody else can reach."""

import logging
import os

_CLUSTER_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def start_ray(num_cpus: int | None = None) -> None:
    """Make sure that Ray runs; does nothing when this process is connected already.

    With `RAY_ADDRESS` set, connects there (`auto` finds the cluster of this machine). Else starts a local cluster on
    the loopback address, without dashboard and without usage reports. Worker output stays in Ray's log folder: results
    and errors come back through Ray.

    Args:
        num_cpus: logical CPUs of a cluster started here; None for the machine's. Ignored when connecting.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        return
    # It warns that token authentication is on, which is what we want.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS", "")
    # Off, a local cluster listens on 127.0.0.1 only; on (Linux's default), on the machine's network address, which is
    # also where Ray would look for a head that listens on the loopback. Ray reads the variable when it is imported,
    # which may have been before this: hence the constant too (Ray 2.60, tested).
    loopback = not address or address.startswith(("127.", "localhost"))
    if loopback and os.environ.setdefault(_CLUSTER_SWITCH, "0") == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False
    if address:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
