/* Who started this process, and as which rank: variables that launchers set. */
#include <stdlib.h>
#include <string.h>

#include "train/comm.h"

/* -1: not set. */
static Status read_number(const char *name, int *value, Error *err) {
    const char *text = name != NULL ? getenv(name) : NULL;
    *value = -1;
    if (text == NULL || text[0] == 0) return OK;
    char *end;
    long number = strtol(text, &end, 10);
    if (*end != 0 || number < 0 || number > 1 << 20)
        FAIL_USAGE("the environment variable %s: want a number of ranks or of a rank, got \"%.40s\"", name, text);
    *value = (int)number;
    return OK;
}

typedef struct Launcher {
    const char *by, *rank, *size, *local_rank, *local_size;
    int mpi;
} Launcher;

/* The first whose rank and size are set counts. Slurm sets its own also inside mpirun and torchrun. */
static const Launcher launchers[] = {
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", 1},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", 1},
    {"srun", "PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL, 1},
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", 0},
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL, 0},
};

Status comm_launch_read(CommLaunch *launch, Error *err) {
    *launch = (CommLaunch){.size = 1, .local_size = 1, .by = ""};
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const Launcher *l = &launchers[i];
        int rank, size, local_rank, local_size;
        TRY(read_number(l->rank, &rank, err));
        TRY(read_number(l->size, &size, err));
        TRY(read_number(l->local_rank, &local_rank, err));
        TRY(read_number(l->local_size, &local_size, err));
        if (rank < 0 || size < 0) continue;
        if (rank >= size)
            FAIL_USAGE("%s is %d and %s is %d: ranks are numbered from 0 to one less than their number", l->rank, rank, l->size,
                       size);
        *launch = (CommLaunch){.rank = rank,
                               .size = size,
                               .local_rank = local_rank < 0 ? 0 : local_rank,
                               .local_size = local_size < 0 ? 0 : local_size,
                               .by = l->by,
                               .mpi = l->mpi};
        return OK;
    }
    return OK;
}
