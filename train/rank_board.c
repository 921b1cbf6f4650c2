#include "train/rank_board.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/memory.h"

static RankNote *map(int file, int size) {
    void *notes = mmap(NULL, (size_t)size * sizeof(RankNote), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return notes == MAP_FAILED ? NULL : notes;
}

Status rank_board_create(RankBoard *board, int size, Error *err) {
    memset(board, 0, sizeof *board);
    board->size = size;
    (void)snprintf(board->path, sizeof board->path, "/tmp/nibble-ranks-XXXXXX");
    int file = mkstemp(board->path);
    if (file < 0) FAIL("%s: cannot create it: %s", board->path, strerror(errno));
    if (ftruncate(file, (off_t)((size_t)size * sizeof(RankNote))) == 0) board->notes = map(file, size);
    int code = errno;
    (void)close(file);
    if (board->notes != NULL && setenv(RANK_BOARD_VARIABLE, board->path, 1) == 0) return OK;
    rank_board_remove(board);
    FAIL("cannot share memory between ranks: %s", strerror(code));
}

void rank_board_remove(RankBoard *board) {
    if (board->notes != NULL) (void)munmap(board->notes, (size_t)board->size * sizeof(RankNote));
    if (board->path[0] != 0) (void)unlink(board->path);
    memset(board, 0, sizeof *board);
}

RankNote *rank_board_notes(int size) {
    const char *path = getenv(RANK_BOARD_VARIABLE);
    struct stat info;
    if (path == NULL) return NULL;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return NULL;
    RankNote *notes = NULL; /* a board for another number of ranks is not ours */
    if (fstat(file, &info) == 0 && info.st_size == (off_t)((size_t)size * sizeof(RankNote))) notes = map(file, size);
    (void)close(file);
    return notes;
}
