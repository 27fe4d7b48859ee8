"""One JSON record per family, told apart by its family: what reports, the tuner and the command line read."""
