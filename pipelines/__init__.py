"""How unlearning runs on a cluster: Ray Train stage, Ray Data stage, frontier pictures and the command line."""
