"""Launches on real hosts, by real ssh, pdsh, MPI and SLURM, all on this machine: `make test-cluster`."""
