"""How hyper-parameters are searched: space, objectives, archive, searchers, stop rules, the Ray Tune side."""
