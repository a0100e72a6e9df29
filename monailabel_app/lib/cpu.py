"""Environment of processes that compute on a CPU beside others; it is read when they start."""

__all__ = ["CPU_ENVIRONMENT"]

CPU_ENVIRONMENT = {
    # OpenMP's threads wait for each other in a busy loop by default. Where another process needs the same cores, a
    # training step then took 25 s instead of 2 (2 cores, 4 other processes).
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc gives each large buffer back to the system and gets the next with empty pages. With the buffers kept, the
    # encoder took 0.44 s instead of 0.79 for a slice of 256 px (vit_t, batch of 4, 2 cores).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}
