/* Data parallel: every rank holds the adapters, runs some of a step's micro-batches, and all sum their gradients.
 *
 * Of the K micro-batches of an optimizer step rank r of N runs r, r + N, r + 2N, …: in rounds, of which the last may leave some
 * ranks without one. Gradients lie in one flat buffer. In the last round its parts (buckets: whole layers, from the last layer
 * to the first, as the backward pass completes them) are summed while the pass goes on. Losses are gathered by micro-batch
 * and added in their order, so that the loss of a step is the same number for every N.
 *
 * All ranks then take the same optimizer step on the same bits; a hash of the masters proves it now and then.
 */
#ifndef NIBBLE_TRAIN_REPLICAS_H
#define NIBBLE_TRAIN_REPLICAS_H

#include "train/checkpoint.h"
#include "train/comm.h"
#include "train/params.h"

typedef struct Replicas Replicas;

/* comm NULL: one rank, *out is NULL, and every call here returns at once. micro_batches: of a step at most. Everything is
 * borrowed. */
Status replicas_open(Replicas **out, Comm *comm, const ParamSet *params, ParamState *state, int64_t micro_batches, Error *err);
void replicas_free(Replicas *replicas);
/* What it takes on a rank, buffers of sums included. */
size_t replicas_bytes(const ParamSet *params, int64_t micro_batches, int size);

/* A step begins; nothing is under way. */
void replicas_begin(Replicas *replicas);
/* Starts the sums of all buckets that are complete once `layer` is; -1: of all. */
Status replicas_layer_done(Replicas *replicas, int64_t layer, Error *err);
/* Waits until gradients are those of all ranks, and losses [count] too (each rank filled in its own, others are 0). */
Status replicas_finish(Replicas *replicas, double *losses, int64_t count, Error *err);

/* Signals: every rank gives its own (0: none) and learns the largest, one call late: what was given in the call before.
 * Nothing waits for a slow rank longer than that. */
Status replicas_vote(Replicas *replicas, int own, int *agreed, Error *err);
/* The same at once. */
Status replicas_vote_now(Replicas *replicas, int own, int *agreed, Error *err);

/* Fails, naming the ranks, when masters are not the same bits everywhere. */
Status replicas_check(Replicas *replicas, int64_t step, Error *err);
/* Rank 0's checkpoint to everybody: masters, moments, position. whole: rank 0's, from replicas_whole_state. */
Status replicas_share_state(Replicas *replicas, const ParamState *whole, CheckpointState *progress, Error *err);

/* ---- a split optimizer: every rank steps its share of what is trained and has the moments of that share alone ---- */

/* After a step: everybody's share of masters and copies. */
Status replicas_gather_trained(Replicas *replicas, DType act, Error *err);
/* A state to read a checkpoint into: where the optimizer is split and this is rank 0, with memory for all moments; else `state`
 * itself. */
void replicas_whole_state(const Replicas *replicas, const ParamState *state, ParamState *whole);
void replicas_whole_free(const ParamState *state, ParamState *whole);
/* The same with the moments of all ranks, for a checkpoint of rank 0; all ranks take part. To be freed also after a failure. */
Status replicas_collect_moments(Replicas *replicas, const ParamState *state, ParamState *whole, Error *err);
/* Whether ranks have to take part in a checkpoint. */
int replicas_save_together(const Replicas *replicas);

/* Bytes that `rank` of `size` sends for the gradients of one step. */
uint64_t replicas_step_bytes(const ParamSet *params, int rank, int size);
/* And for what it has stepped, where the optimizer is split. */
uint64_t replicas_trained_bytes(const ParamSet *params, DType act, int size);
/* And for losses and votes of a step with that many micro-batches. */
uint64_t replicas_control_bytes(int64_t micro_batches, int rank, int size);

#endif
